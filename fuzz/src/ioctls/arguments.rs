//! The bytes of an argument: the fuzzer's, with the addresses and descriptors in them exchanged for ones that cannot
//! hurt this process.
use abi::*;

use super::client::Client;
use crate::input::Input;

/// Most bytes of an argument that the input gives.
const MOST: usize = 1024;

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// An argument for the request `nr`.
pub(super) fn bytes(client: &Client, nr: u32, input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.u16()) % (MOST + 1);
    let sparse = input.u8();
    let mut bytes = vec![0; ioc_size(nr).max(64)];
    let given = input.bytes(len);
    bytes.resize(bytes.len().max(given.len()), 0);
    // Numbers that are mostly small, so that what lies behind the first check is reached.
    let stride = if sparse & 1 != 0 { 4 } else { 1 };
    for (i, &byte) in given.iter().enumerate() {
        if let Some(to) = bytes.get_mut(i * stride) {
            *to = byte;
        }
    }
    let choice = sparse >> 1;
    match nr {
        KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
            let (hva, most) = client.slot_memory(word(&bytes, 24));
            let size = word(&bytes, 16) << if sparse & 1 != 0 { 8 } else { 0 };
            put(&mut bytes, 16, &size.min(most).to_le_bytes());
            put(&mut bytes, 24, &hva.to_le_bytes());
        }
        KVM_GET_DIRTY_LOG | KVM_GET_ONE_REG => put(&mut bytes, 8, &client.address(choice).to_le_bytes()),
        KVM_CLEAR_DIRTY_LOG | KVM_GET_DEVICE_ATTR => put(&mut bytes, 16, &client.address(choice).to_le_bytes()),
        KVM_IRQFD => {
            put(&mut bytes, 0, &client.descriptor(choice).to_le_bytes());
            put(&mut bytes, 12, &client.descriptor(choice.wrapping_add(1)).to_le_bytes());
        }
        KVM_IOEVENTFD => put(&mut bytes, 20, &client.descriptor(choice).to_le_bytes()),
        KVM_HYPERV_EVENTFD => put(&mut bytes, 4, &client.descriptor(choice).to_le_bytes()),
        // The signals that end what would not end by itself stay unblocked.
        KVM_SET_SIGNAL_MASK => {
            let mask = word(&bytes, 4) & !client.signals();
            put(&mut bytes, 4, &mask.to_le_bytes());
        }
        _ => {}
    }
    bytes
}

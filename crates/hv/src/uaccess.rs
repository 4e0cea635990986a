//! Structures of the client, copied once in and once out. What was copied in is checked by whoever asked for it;
//! nothing is read twice.
use abi::Pod;
use alloc::vec::Vec;
use platform::{Hva, Memory};

use crate::Errno;

/// Copies a structure from the client's address `arg`.
pub(crate) fn get<M: Memory, T: Pod>(arg: u64) -> Result<T, Errno> {
    let mut value = T::zeroed();
    M::copy_from(Hva::of_client(arg)?, value.bytes_mut())?;
    Ok(value)
}

/// Copies a structure to the client's address `arg`.
pub(crate) fn put<M: Memory, T: Pod>(arg: u64, value: &T) -> Result<(), Errno> {
    Ok(M::copy_to(Hva::of_client(arg)?, value.bytes())?)
}

/// Copies `len` bytes from the client's address `arg`: for structures that are too large for a kernel's stack.
pub(crate) fn get_bytes<M: Memory>(arg: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = platform::fallible::try_vec(0, len)?;
    M::copy_from(Hva::of_client(arg)?, &mut bytes)?;
    Ok(bytes)
}

/// Copies `bytes` to the client's address `arg`.
pub(crate) fn put_bytes<M: Memory>(arg: u64, bytes: &[u8]) -> Result<(), Errno> {
    Ok(M::copy_to(Hva::of_client(arg)?, bytes)?)
}

/// Copies the `count` elements that follow the header `H` at `arg`; more than `most` is E2BIG.
pub(crate) fn get_tail<M: Memory, H, T: Pod>(arg: u64, count: u32, most: usize) -> Result<Vec<T>, Errno> {
    let count = usize::try_from(count).map_err(|_| Errno::E2BIG)?;
    if count > most {
        return Err(Errno::E2BIG);
    }
    let mut tail = platform::fallible::try_vec(T::zeroed(), count)?;
    let mut at = tail_of::<H>(arg)?;
    for element in &mut tail {
        M::copy_from(at, element.bytes_mut())?;
        at = at.add(size_of::<T>() as u64);
    }
    Ok(tail)
}

/// Copies `elements` behind the header `H` at `arg`.
pub(crate) fn put_tail<M: Memory, H, T: Pod>(arg: u64, elements: &[T]) -> Result<(), Errno> {
    let mut at = tail_of::<H>(arg)?;
    for element in elements {
        M::copy_to(at, element.bytes())?;
        at = at.add(size_of::<T>() as u64);
    }
    Ok(())
}

fn tail_of<H>(arg: u64) -> Result<Hva, Errno> {
    Ok(Hva::of_client(arg)?.add(size_of::<H>() as u64))
}

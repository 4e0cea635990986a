//! The current control structure, as a value that only exists while there is one, and memory of what has been written to it: the
//! instructions are slow, and most fields stay what they are.
use core::marker::PhantomData;

use crate::{
    fields::{Field, Width},
    instructions::Instructions,
};

/// The control structure that is current on this processor, with interrupts off.
#[derive(Debug)]
pub struct Current<I>(PhantomData<(fn() -> I, Here)>);

/// Belongs to one processor: neither sent nor shared.
type Here = *mut ();

impl<I: Instructions> Current<I> {
    /// # Safety
    /// There is one, interrupts are off, and both stay so while this lives.
    pub unsafe fn new() -> Self {
        Self(PhantomData)
    }

    /// Reads a field.
    #[inline]
    pub fn read<W: Width>(&self, field: Field<W>) -> W::Value {
        // SAFETY: what `new` was promised.
        W::value(unsafe { I::vmread(field.encoding()) })
    }

    /// Writes a field.
    #[inline]
    pub fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        // SAFETY: what `new` was promised; what guests must not get is kept from them by what this crate writes into the
        // control fields.
        unsafe { I::vmwrite(field.encoding(), W::raw(value)) };
    }
}

/// A field, and what is known to be in it.
#[derive(Clone, Copy, Debug)]
pub struct Known<W: Width> {
    field: Field<W>,
    value: Option<W::Value>,
}

impl<W: Width> Known<W> {
    /// Nothing is known of it.
    pub const fn new(field: Field<W>) -> Self {
        Self { field, value: None }
    }

    /// Writes `value`, unless it is there.
    #[inline]
    pub fn put<I: Instructions>(&mut self, vmcs: &mut Current<I>, value: W::Value) {
        if self.value != Some(value) {
            self.value = Some(value);
            vmcs.write(self.field, value);
        }
    }

    /// Reads it.
    #[inline]
    pub fn get<I: Instructions>(&mut self, vmcs: &Current<I>) -> W::Value {
        let value = vmcs.read(self.field);
        self.value = Some(value);
        value
    }

    /// Writes `value`, unless it is there, into a field from which the processor takes what is not `W::Value::default()`.
    #[inline]
    pub fn put_once<I: Instructions>(&mut self, vmcs: &mut Current<I>, value: W::Value)
    where
        W::Value: Default,
    {
        self.put(vmcs, value);
        if value != W::Value::default() {
            self.value = None;
        }
    }

    /// The processor has written it.
    #[inline]
    pub fn changed(&mut self) {
        self.value = None;
    }
}

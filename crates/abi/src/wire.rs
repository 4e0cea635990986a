//! Viewing a wire structure as bytes and back, without `unsafe` in any caller.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Plain old data: any bytes of the right number are a value, and a value has no padding that could leak.
///
/// Implemented for every structure of this crate and for the integers and arrays that the wire uses.
pub trait Pod: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The value's bytes in memory order.
    fn bytes(&self) -> &[u8] {
        IntoBytes::as_bytes(self)
    }

    /// The value's bytes, writable.
    fn bytes_mut(&mut self) -> &mut [u8] {
        IntoBytes::as_mut_bytes(self)
    }

    /// Copies a value out of the start of `bytes`; `None` if there are too few.
    fn from_prefix(bytes: &[u8]) -> Option<Self> {
        FromBytes::read_from_prefix(bytes).ok().map(|(v, _)| v)
    }

    /// A value whose bytes are all zero.
    fn zeroed() -> Self {
        FromZeros::new_zeroed()
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy> Pod for T {}

/// Declares wire structures: C layout, all traits of [`Pod`], and all-zero as the default.
macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                ::zerocopy::FromZeros::new_zeroed()
            }
        }
    )*};
}

/// Declares numbers of one family together with a table of their names.
macro_rules! named {
    ($(#[$tmeta:meta])* $table:ident; $($(#[$meta:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$meta])* pub const $name: u32 = $value;)*

        $(#[$tmeta])*
        pub const $table: &[(u32, &str)] = &[$(($name, stringify!($name)),)*];
    };
}

/// Finds a number's name in a table made by `named!`.
pub(crate) fn lookup(table: &'static [(u32, &'static str)], number: u32) -> Option<&'static str> {
    table.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

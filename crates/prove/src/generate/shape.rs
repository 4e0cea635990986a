//! Operand shapes: each form is proven with each of those that it can have.
use std::fmt;

/// How the operands of an instruction are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// No operand in memory, or none at all.
    Register,
    /// Memory that no ModRM byte tells: stack, strings, tables.
    Implicit,
    /// `[base]`
    Base,
    /// `[base + displacement]`
    Displacement,
    /// `[base + index * scale + displacement]`, or without displacement
    Index,
    /// `[index * scale + displacement]`
    IndexOnly,
    /// `[displacement]`
    Absolute,
    /// `[rip + displacement]`
    Relative,
    /// With a segment prefix.
    Segment,
    /// With an address-size prefix: 16-bit addressing in 32-bit code, 32-bit addressing in 16- and 64-bit code.
    AddressSize,
    /// The operand lies across a page boundary.
    Crossing,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Register,
        Self::Implicit,
        Self::Base,
        Self::Displacement,
        Self::Index,
        Self::IndexOnly,
        Self::Absolute,
        Self::Relative,
        Self::Segment,
        Self::AddressSize,
        Self::Crossing,
    ];

    /// As it stands in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Implicit => "implicit",
            Self::Base => "base",
            Self::Displacement => "displacement",
            Self::Index => "index",
            Self::IndexOnly => "index-only",
            Self::Absolute => "absolute",
            Self::Relative => "rip-relative",
            Self::Segment => "segment",
            Self::AddressSize => "address-size",
            Self::Crossing => "page-crossing",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

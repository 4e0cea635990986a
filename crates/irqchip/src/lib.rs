//! PIC, IOAPIC, local APIC, PIT and interrupt routing.

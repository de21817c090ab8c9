//! Composing a filter: first by architecture, then by a binary search among ranges of call numbers.

use kiln_sys::seccomp::Instruction;

use super::{Action, Check, Numbering, Processor, Profile};

/// `BPF_LD | BPF_W | BPF_ABS`
pub(super) const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub(super) const IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`
pub(super) const IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`
pub(super) const IF_ANY_BIT: u16 = 0x45;
/// `BPF_ALU | BPF_AND | BPF_K`
pub(super) const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`
pub(super) const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The low half of an argument on a little-endian processor.
const fn argument(number: u32) -> u32 {
    16 + 8 * number
}

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_NOTIFY: u32 = 0x7fc0_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_ARM64: u32 = 0xc000_00b7;
const AUDIT_ARM: u32 = 0x4000_0028;
/// The mark in an x32 call's number.
const X32: u32 = 0x4000_0000;

/// All `CLONE_NEW*` flags that the profile knows.
const NAMESPACES: u32 = 0x7e02_0000;
/// `O_CREAT`, the same on all of these processors.
const CREATE: u32 = 0o100;
const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
/// `PR_SET_KEEPCAPS`
const KEEP_CAPABILITIES: u32 = 8;

/// A call's numbering, and its number without a mark.
pub(super) fn numbering(architecture: u32, number: u32) -> Option<(Numbering, u32)> {
    match architecture {
        AUDIT_X86_64 if number >= X32 => Some((Numbering::X32, number - X32)),
        AUDIT_X86_64 => Some((Numbering::X86_64, number)),
        AUDIT_I386 => Some((Numbering::I386, number)),
        AUDIT_ARM64 => Some((Numbering::Arm64, number)),
        AUDIT_ARM => Some((Numbering::Arm, number)),
        _ => None,
    }
}

/// The filter of a profile.
pub(super) fn compose(profile: &Profile) -> Vec<Instruction> {
    let ranges = |numbering: Numbering, mark: u32| ranges(profile, numbering, mark);
    let sections = match profile.processor {
        Processor::X86 => {
            // One number line: x32's numbers are those with the mark.
            let mut native = ranges(Numbering::X86_64, 0);
            native.extend(ranges(Numbering::X32, X32));
            [(AUDIT_X86_64, native), (AUDIT_I386, ranges(Numbering::I386, 0))]
        }
        Processor::Arm => {
            [(AUDIT_ARM64, ranges(Numbering::Arm64, 0)), (AUDIT_ARM, ranges(Numbering::Arm, 0))]
        }
    };
    let mut program = vec![load(ARCHITECTURE)];
    for (architecture, ranges) in sections {
        let mut body = vec![load(NUMBER)];
        body.extend(search(&ranges));
        program.push(Instruction { code: IF_EQUAL, if_true: 1, if_false: 0, operand: architecture });
        program.push(Instruction { code: JUMP, if_true: 0, if_false: 0, operand: body.len() as u32 });
        program.extend(body);
    }
    // A numbering that the kernel of such a processor does not have.
    program.push(give(profile.otherwise()));
    program
}

/// The first number of each run of calls with the same action, beginning with `mark`.
fn ranges(profile: &Profile, numbering: Numbering, mark: u32) -> Vec<(u32, Action)> {
    let otherwise = profile.otherwise();
    let mut ranges = vec![(mark, otherwise)];
    let mut begin = |number: u32, action: Action| {
        match ranges.last_mut() {
            Some(last) if last.0 == number => last.1 = action,
            Some(last) if last.1 == action => return,
            _ => ranges.push((number, action)),
        }
        // Setting the last one's action may have made it equal to the one before.
        if let [.., before, last] = ranges.as_slice()
            && before.1 == last.1
        {
            ranges.pop();
        }
    };
    for (number, action) in profile.actions(numbering) {
        begin(mark + number, action);
        begin(mark + number + 1, otherwise);
    }
    ranges
}

/// A balanced tree of comparisons over ranges.
fn search(ranges: &[(u32, Action)]) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [(_, action)] => decide(*action),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (low, upper) = (search(low), search(high));
            let mut tree = Vec::with_capacity(low.len() + upper.len() + 2);
            match u8::try_from(low.len()) {
                Ok(distance) => {
                    tree.push(Instruction {
                        code: IF_AT_LEAST,
                        if_true: distance,
                        if_false: 0,
                        operand: high[0].0,
                    });
                }
                // A comparison jumps over 255 instructions at most, a plain jump over any number.
                Err(_) => {
                    tree.push(Instruction { code: IF_AT_LEAST, if_true: 0, if_false: 1, operand: high[0].0 });
                    let distance = low.len() as u32;
                    tree.push(Instruction { code: JUMP, if_true: 0, if_false: 0, operand: distance });
                }
            }
            tree.extend(low);
            tree.extend(upper);
            tree
        }
    }
}

/// The instructions that end in an answer.
fn decide(action: Action) -> Vec<Instruction> {
    let Action::Check(check) = action else { return vec![give(action)] };
    let (allow, refuse) = (give(Action::Allow), give(Action::Fail(super::EPERM)));
    let test =
        |code: u16, operand: u32, if_true: u8, if_false: u8| Instruction { code, if_true, if_false, operand };
    match check {
        Check::Family => {
            vec![load(argument(0)), test(IF_EQUAL, 38, 2, 0), test(IF_EQUAL, 40, 1, 0), allow, refuse]
        }
        Check::Personality => vec![
            load(argument(0)),
            test(IF_EQUAL, 0, 4, 0),
            test(IF_EQUAL, 0x8, 3, 0),
            test(IF_EQUAL, 0x20000, 2, 0),
            test(IF_EQUAL, 0x20008, 1, 0),
            test(IF_EQUAL, u32::MAX, 0, 1),
            allow,
            refuse,
        ],
        Check::CloneFlags => vec![load(argument(0)), test(IF_ANY_BIT, NAMESPACES, 1, 0), allow, refuse],
        Check::DeviceMode(number) => vec![
            load(argument(number.into())),
            test(AND, FILE_TYPE, 0, 0),
            test(IF_EQUAL, CHARACTER_DEVICE, 2, 0),
            test(IF_EQUAL, BLOCK_DEVICE, 1, 0),
            allow,
            give(Action::Notify),
        ],
        Check::Creates(number) => {
            vec![load(argument(number.into())), test(IF_ANY_BIT, CREATE, 1, 0), allow, give(Action::Notify)]
        }
        Check::Keeps => {
            vec![load(argument(0)), test(IF_EQUAL, KEEP_CAPABILITIES, 1, 0), allow, give(Action::Notify)]
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, operand: offset }
}

fn give(action: Action) -> Instruction {
    let operand = match action {
        Action::Allow => RETURN_ALLOW,
        Action::Fail(errno) => RETURN_ERRNO | u32::from(errno),
        Action::Notify => RETURN_NOTIFY,
        // A check is decided by several instructions; refusing is the safe reading of one.
        Action::Check(_) => RETURN_ERRNO | u32::from(super::EPERM),
    };
    Instruction { code: RETURN, if_true: 0, if_false: 0, operand }
}

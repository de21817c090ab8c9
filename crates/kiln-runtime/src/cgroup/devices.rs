//! Which devices a container may open, as a program for cgroups of version 2 and as lines for version 1.
//!
//! The list is runc's (`libcontainer/specconv/spec_linux.go`), which BuildKit takes as it is, without `/dev/net/tun` (10:200): it
//! leads to the machine's network as long as containers share that. Docker adds the machine's console (5:1,
//! `daemon/pkg/oci/defaults.go`), kiln does not.

use kiln_sys::bpf::Instruction;

/// The minor numbers of a major one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Minors {
    All,
    /// Each below 32.
    These(&'static [u8]),
}

/// Character devices that may be read and written. Any node may be made.
const OPENED: [(u16, Minors); 3] = [
    // null, zero, full, random, urandom
    (1, Minors::These(&[3, 5, 7, 8, 9])),
    // tty, ptmx
    (5, Minors::These(&[0, 2])),
    // Pseudoterminals, which the kernel opens in a file system of theirs alone.
    (136, Minors::All),
];

/// The lines for `devices.allow`, after everything was denied.
pub(super) fn lines() -> Vec<String> {
    let mut lines = vec!["c *:* m".to_owned(), "b *:* m".to_owned()];
    for (major, minors) in OPENED {
        match minors {
            Minors::All => lines.push(format!("c {major}:* rwm")),
            Minors::These(minors) => {
                lines.extend(minors.iter().map(|minor| format!("c {major}:{minor} rwm")));
            }
        }
    }
    lines
}

// The kernel's names in comments: `BPF_LDX | BPF_MEM | BPF_W` and so on, each with a constant operand (`BPF_K`) unless it
// says otherwise. The context in register 1 is a `struct bpf_cgroup_dev_ctx`: access in the upper half and kind in the lower
// half of the first word, then major and minor.
const LOAD_WORD: u8 = 0x61;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
/// By a register's value (`BPF_X`).
const SHIFT_RIGHT_BY: u8 = 0x7f;
const IF_EQUAL: u8 = 0x15;
const IF_DIFFERENT: u8 = 0x55;
const IF_ABOVE: u8 = 0x25;
const EXIT: u8 = 0x95;

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const ASKED: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;

const MAKE_CHARACTER: i32 = (1 << 16) | 2;
const MAKE_BLOCK: i32 = (1 << 16) | 1;
const CHARACTER: i32 = 2;

fn on(code: u8, register: u8, offset: i16, operand: i32) -> Instruction {
    Instruction { code, registers: register, offset, operand }
}

fn with(code: u8, changed: u8, read: u8, offset: i16) -> Instruction {
    Instruction { code, registers: changed | (read << 4), offset, operand: 0 }
}

/// The program: 1 permits, 0 refuses. Short, because each instruction costs a microsecond or two when it is loaded.
pub(super) fn program() -> Vec<Instruction> {
    let mut program = vec![
        on(SET, ANSWER, 0, 1),
        with(LOAD_WORD, ASKED, CONTEXT, 0),
        on(IF_EQUAL, ASKED, 1, MAKE_CHARACTER),
        on(IF_DIFFERENT, ASKED, 1, MAKE_BLOCK),
        on(EXIT, 0, 0, 0),
        on(SET, ANSWER, 0, 0),
        with(LOAD_WORD, MAJOR, CONTEXT, 4),
        with(LOAD_WORD, MINOR, CONTEXT, 8),
        on(AND, ASKED, 0, 0xffff),
        on(IF_EQUAL, ASKED, 1, CHARACTER),
        on(EXIT, 0, 0, 0),
    ];
    for (major, minors) in OPENED {
        let decision = match minors {
            Minors::All => vec![on(SET, ANSWER, 0, 1)],
            // The answer is the minor's bit in a word.
            Minors::These(minors) => {
                let bits = minors.iter().fold(0_u32, |bits, minor| bits | (1 << minor));
                vec![
                    on(IF_ABOVE, MINOR, 3, 31),
                    on(SET, ANSWER, 0, bits as i32),
                    with(SHIFT_RIGHT_BY, ANSWER, MINOR, 0),
                    on(AND, ANSWER, 0, 1),
                ]
            }
        };
        program.push(on(IF_DIFFERENT, MAJOR, decision.len() as i16 + 1, major.into()));
        program.extend(decision);
        program.push(on(EXIT, 0, 0, 0));
    }
    program.push(on(EXIT, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKE: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;

    /// What the kernel would answer. Panics where the kernel would refuse the program: by a value that was never set, or by
    /// running past the end.
    fn interpret(program: &[Instruction], context: [u32; 3]) -> u64 {
        let mut registers = [None; 11];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: names, offset, operand } = program[at];
            at += 1;
            let (changed, read) = (usize::from(names & 15), usize::from(names >> 4));
            let value = |register: usize| -> u64 { registers[register].expect("a value") };
            let operand = i64::from(operand) as u64;
            let jump = match code {
                LOAD_WORD => {
                    assert_eq!(read, usize::from(CONTEXT));
                    registers[changed] =
                        Some(u64::from(context[usize::try_from(offset / 4).expect("a field")]));
                    false
                }
                SET => {
                    registers[changed] = Some(operand);
                    false
                }
                AND => {
                    registers[changed] = Some(value(changed) & operand);
                    false
                }
                SHIFT_RIGHT_BY => {
                    registers[changed] = Some(value(changed) >> value(read));
                    false
                }
                IF_EQUAL => value(changed) == operand,
                IF_DIFFERENT => value(changed) != operand,
                IF_ABOVE => value(changed) > operand,
                EXIT => return value(0),
                code => panic!("unknown operation {code:#x}"),
            };
            if jump {
                at = at.checked_add_signed(isize::from(offset)).expect("forward");
            }
        }
    }

    fn permits(kind: u32, major: u32, minor: u32, access: u32) -> bool {
        match interpret(&program(), [(access << 16) | kind, major, minor]) {
            0 => false,
            1 => true,
            other => panic!("the kernel takes 0 and 1 alone, not {other}"),
        }
    }

    #[test]
    fn the_usual_devices_alone_are_opened() {
        const BLOCK: u32 = 1;
        const CHARACTER: u32 = 2;
        let opened =
            [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 31), (136, 99_999)];
        let majors = (0..300).chain([511, 4095, u32::MAX]);
        for (major, minor) in majors.flat_map(|major| {
            (0..70).chain([99_999, (1 << 20) - 1, u32::MAX]).map(move |minor| (major, minor))
        }) {
            let expect = major == 136 || opened.contains(&(major, minor));
            for access in [READ, WRITE, READ | WRITE] {
                assert_eq!(permits(CHARACTER, major, minor, access), expect, "{major}:{minor} {access}");
                assert!(!permits(BLOCK, major, minor, access), "{major}:{minor} {access}");
            }
            assert_eq!(permits(CHARACTER, major, minor, READ | MAKE), expect);
            assert!(!permits(BLOCK, major, minor, WRITE | MAKE));
            assert!(permits(CHARACTER, major, minor, MAKE) && permits(BLOCK, major, minor, MAKE));
        }
    }

    #[test]
    fn lines_say_the_same() {
        let expect = "c *:* m, b *:* m, c 1:3 rwm, c 1:5 rwm, c 1:7 rwm, c 1:8 rwm, c 1:9 rwm, c 5:0 rwm, \
                      c 5:2 rwm, c 136:* rwm";
        assert_eq!(lines().join(", "), expect);
    }
}

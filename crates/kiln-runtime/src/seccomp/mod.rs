//! Docker's default system call profile, composed into a filter for every architecture that the processor runs.
//!
//! A call of another architecture's numbering (a 32-bit program's) is looked up in that architecture's own table; it is
//! refused or allowed, never killed.

mod compose;
#[cfg(test)]
mod machine;
mod table;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use kiln_sys::seccomp::Instruction;

use crate::capability::Capabilities;
use crate::capability::bits::SYS_ADMIN;
use crate::sandbox::{OwnershipMode, Security};
use table::{CALLS, Rule};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The kernel does it.
    Allow,
    /// It fails with this error number; 0 makes it succeed without doing anything.
    Fail(u16),
    /// The recorder answers.
    Notify,
    /// That depends on an argument.
    Check(Check),
}

/// Conditions on an argument's low 32 bits: all that the kernel itself looks at in these calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Argument 0 is a family other than `AF_ALG` and `AF_VSOCK`: allowed.
    Family,
    /// Argument 0 is a harmless personality: allowed.
    Personality,
    /// Argument 0 has no flag of a new namespace: allowed.
    CloneFlags,
    /// The argument of this number is the mode of a device node: the recorder answers.
    DeviceMode(u8),
    /// The argument of this number has `O_CREAT`: the recorder answers.
    Creates(u8),
    /// Argument 0 is `PR_SET_KEEPCAPS`: the recorder answers.
    Keeps,
}

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// An architecture's way of numbering calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbering {
    X86_64,
    X32,
    I386,
    Arm64,
    Arm,
}

impl Numbering {
    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X32 => 1,
            Self::I386 => 2,
            Self::Arm64 => 3,
            Self::Arm => 4,
        }
    }
}

/// The processors that the profile is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Processor {
    X86,
    Arm,
}

/// That of this program, if the profile is written for it.
const OWN: Option<Processor> = if cfg!(target_arch = "x86_64") {
    Some(Processor::X86)
} else if cfg!(target_arch = "aarch64") {
    Some(Processor::Arm)
} else {
    None
};

/// What the filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Profile {
    processor: Processor,
    capabilities: u64,
    restricted: bool,
    recorded: bool,
}

/// Whether this program's processor has a profile.
pub(crate) fn is_known_processor() -> bool {
    OWN.is_some()
}

/// The filter for a process with these capabilities, packed with [`pack`]; empty if it needs none. Composed once for
/// the same arguments.
pub(crate) fn filter(capabilities: Capabilities, security: Security, ownership: OwnershipMode) -> Vec<u64> {
    static COMPOSED: OnceLock<Mutex<HashMap<Profile, Vec<u64>>>> = OnceLock::new();
    let Some(processor) = OWN else { return Vec::new() };
    let restricted = security == Security::Sandboxed;
    let recorded = ownership == OwnershipMode::Recorded;
    if !restricted && !recorded {
        return Vec::new();
    }
    let profile = Profile { processor, capabilities: capabilities.bits(), restricted, recorded };
    let mut composed =
        COMPOSED.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    composed
        .entry(profile)
        .or_insert_with(|| compose::compose(&profile).into_iter().map(pack).collect())
        .clone()
}

impl Profile {
    /// What happens to calls that no table names.
    fn otherwise(&self) -> Action {
        if self.restricted { Action::Fail(EPERM) } else { Action::Allow }
    }

    /// The named calls of a numbering and what happens to them, by number.
    fn actions(&self, numbering: Numbering) -> Vec<(u32, Action)> {
        let mut actions: Vec<(u32, Action)> = CALLS
            .iter()
            .filter(|(_, _, numbers)| numbers[numbering.column()] != table::X)
            .map(|(name, rule, numbers)| (numbers[numbering.column()], self.action(name, *rule)))
            .collect();
        actions.sort_unstable_by_key(|(number, _)| *number);
        actions
    }

    fn action(&self, name: &str, rule: Rule) -> Action {
        if self.recorded
            && let Some(action) = recorded(name)
        {
            return action;
        }
        if !self.restricted {
            return Action::Allow;
        }
        let when = |allowed: bool| if allowed { Action::Allow } else { Action::Fail(EPERM) };
        let administrator = self.capabilities & SYS_ADMIN != 0;
        match rule {
            Rule::Always => Action::Allow,
            Rule::Needs(any) => when(self.capabilities & any != 0),
            Rule::OnX86 => when(self.processor == Processor::X86),
            Rule::OnArm => when(self.processor == Processor::Arm),
            Rule::Socket => Action::Check(Check::Family),
            Rule::Personality => Action::Check(Check::Personality),
            Rule::Clone if administrator => Action::Allow,
            Rule::Clone => Action::Check(Check::CloneFlags),
            Rule::Clone3 if administrator => Action::Allow,
            Rule::Clone3 => Action::Fail(ENOSYS),
        }
    }
}

/// What the recorder of owners has to see.
fn recorded(name: &str) -> Option<Action> {
    match name {
        "mknod" => Some(Action::Check(Check::DeviceMode(1))),
        "mknodat" => Some(Action::Check(Check::DeviceMode(2))),
        "open" => Some(Action::Check(Check::Creates(1))),
        "openat" => Some(Action::Check(Check::Creates(2))),
        "prctl" => Some(Action::Check(Check::Keeps)),
        _ if crate::recorder::Call::named(name).is_some() => Some(Action::Notify),
        _ => None,
    }
}

/// The name of a call, for the recorder.
pub(crate) fn name_of(architecture: u32, number: i32) -> Option<&'static str> {
    let number = u32::try_from(number).ok()?;
    let (numbering, number) = compose::numbering(architecture, number)?;
    let column = numbering.column();
    CALLS.iter().find(|(_, _, numbers)| numbers[column] == number).map(|(name, _, _)| *name)
}

/// An instruction in eight bytes.
fn pack(instruction: Instruction) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::machine::{Call, interpret};
    use super::*;

    const AUDIT_X86_64: u32 = 0xc000_003e;
    const AUDIT_I386: u32 = 0x4000_0003;
    const AUDIT_ARM64: u32 = 0xc000_00b7;
    const AUDIT_ARM: u32 = 0x4000_0028;
    const ALLOW: u32 = 0x7fff_0000;
    const NOTIFY: u32 = 0x7fc0_0000;
    const fn fail(errno: u32) -> u32 {
        0x0005_0000 | errno
    }
    const DEFAULT: Profile = Profile {
        processor: Processor::X86,
        capabilities: Capabilities::DEFAULT.bits(),
        restricted: true,
        recorded: false,
    };

    fn answer(profile: &Profile, architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        interpret(&compose::compose(profile), &Call::new(architecture, number, arguments))
    }

    #[test]
    fn every_number_gets_what_its_rule_says() {
        let capable = Profile { capabilities: u64::MAX, ..DEFAULT };
        let arm = Profile { processor: Processor::Arm, ..DEFAULT };
        let recorded = Profile { recorded: true, ..DEFAULT };
        let free = Profile { restricted: false, recorded: true, ..DEFAULT };
        for profile in [DEFAULT, capable, arm, recorded, free] {
            let program = compose::compose(&profile);
            assert!(program.len() < 4096, "{} instructions", program.len());
            let numberings: &[(u32, u32, Numbering)] = match profile.processor {
                Processor::X86 => &[
                    (AUDIT_X86_64, 0, Numbering::X86_64),
                    (AUDIT_X86_64, 0x4000_0000, Numbering::X32),
                    (AUDIT_I386, 0, Numbering::I386),
                ],
                Processor::Arm => &[(AUDIT_ARM64, 0, Numbering::Arm64), (AUDIT_ARM, 0, Numbering::Arm)],
            };
            for (architecture, mark, numbering) in numberings {
                let actions: HashMap<u32, Action> = profile.actions(*numbering).into_iter().collect();
                for number in (0..1100).chain(0xf_0000..0xf_0010) {
                    let action = actions.get(&number).copied().unwrap_or(profile.otherwise());
                    let expect = match action {
                        Action::Allow => ALLOW,
                        Action::Fail(errno) => fail(errno.into()),
                        Action::Notify => NOTIFY,
                        // Zero arguments: AF_UNSPEC, PER_LINUX, no flags, no mode.
                        Action::Check(_) => ALLOW,
                    };
                    let call = Call::new(*architecture, number | mark, &[]);
                    assert_eq!(interpret(&program, &call), expect, "{numbering:?} {number} {action:?}");
                }
            }
        }
    }

    #[test]
    fn well_known_calls_are_answered_as_docker_does() {
        let check = |architecture: u32, number: u32, arguments: &[u64], expect: u32| {
            assert_eq!(answer(&DEFAULT, architecture, number, arguments), expect, "{number} {arguments:?}");
        };
        check(AUDIT_X86_64, 0, &[], ALLOW); // read
        check(AUDIT_X86_64, 165, &[], fail(1)); // mount
        check(AUDIT_X86_64, 435, &[], fail(38)); // clone3
        check(AUDIT_X86_64, 250, &[], fail(1)); // keyctl
        check(AUDIT_X86_64, 310, &[], ALLOW); // process_vm_readv
        check(AUDIT_X86_64, 425, &[], fail(1)); // io_uring_setup
        check(AUDIT_X86_64, 272, &[], fail(1)); // unshare
        check(AUDIT_X86_64, 9999, &[], fail(1));
        check(AUDIT_I386, 102, &[1, 0], ALLOW); // socketcall
        check(AUDIT_I386, 21, &[], fail(1)); // mount
        check(AUDIT_I386, 3, &[], ALLOW); // read
        check(AUDIT_X86_64, 0x4000_0000, &[], ALLOW); // x32 read
        check(AUDIT_X86_64, 0x4000_00a5, &[], fail(1)); // x32 mount
        check(AUDIT_ARM64, 0, &[], fail(1)); // not this processor's
    }

    #[test]
    fn arguments_are_compared() {
        let check = |number: u32, arguments: &[u64], expect: u32| {
            assert_eq!(answer(&DEFAULT, AUDIT_X86_64, number, arguments), expect, "{number} {arguments:x?}");
        };
        for (family, expect) in [
            (2, ALLOW),
            (37, ALLOW),
            (38, fail(1)),
            (39, ALLOW),
            (40, fail(1)),
            (41, ALLOW),
            ((1 << 32) | 38, fail(1)),
        ] {
            check(41, &[family], expect);
        }
        let personalities = [
            (0, ALLOW),
            (8, ALLOW),
            (0x20000, ALLOW),
            (0x20008, ALLOW),
            (0xffff_ffff, ALLOW),
            (0x0040_0000, fail(1)),
        ];
        for (personality, expect) in personalities {
            check(135, &[personality], expect);
        }
        for flag in
            [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            check(56, &[flag | 17], fail(1));
        }
        check(56, &[0x0000_4111], ALLOW); // vfork
        check(56, &[0x003d_0f00], ALLOW); // a thread
    }

    #[test]
    fn the_recorder_sees_owners_and_device_nodes_alone() {
        let recorded = Profile { recorded: true, ..DEFAULT };
        let check = |architecture: u32, number: u32, arguments: &[u64], expect: u32| {
            assert_eq!(answer(&recorded, architecture, number, arguments), expect, "{number} {arguments:x?}");
        };
        check(AUDIT_X86_64, 92, &[], NOTIFY); // chown
        check(AUDIT_I386, 212, &[], NOTIFY); // chown32
        check(AUDIT_X86_64, 117, &[], NOTIFY); // setresuid
        check(AUDIT_X86_64, 133, &[0, 0o100_644], ALLOW); // mknod of a file
        check(AUDIT_X86_64, 133, &[0, 0o010_644], ALLOW); // of a FIFO
        check(AUDIT_X86_64, 133, &[0, 0o020_644], NOTIFY);
        check(AUDIT_X86_64, 259, &[0, 0, 0o060_644], NOTIFY);
        check(AUDIT_X86_64, 90, &[], ALLOW); // chmod
        check(AUDIT_X86_64, 157, &[15], ALLOW); // prctl: a thread's name
        check(AUDIT_X86_64, 157, &[8, 1], NOTIFY);
    }

    #[test]
    fn searching_is_quick() {
        let program = compose::compose(&DEFAULT);
        let most =
            (0..500).map(|number| machine::steps(&program, &Call::new(AUDIT_X86_64, number, &[]))).max();
        assert!(most < Some(30), "{most:?} instructions for one call");
    }

    #[test]
    fn names_are_found_by_number() {
        assert_eq!(name_of(AUDIT_X86_64, 92), Some("chown"));
        assert_eq!(name_of(AUDIT_X86_64, 0x4000_0000 | 92), Some("chown"));
        assert_eq!(name_of(AUDIT_I386, 212), Some("chown32"));
        assert_eq!(name_of(AUDIT_ARM64, 54), Some("fchownat"));
        assert_eq!(name_of(7, 54), None);
    }
}

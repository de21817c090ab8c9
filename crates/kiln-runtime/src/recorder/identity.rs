//! Whom a process pretends to be, after the rules of `credentials(7)`.

use kiln_sys::process::Credentials;
use rustix::io::Errno;

use super::Call;

/// Real, effective, saved and filesystem identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
    pub(super) saved: u32,
    pub(super) filesystem: u32,
}

impl Ids {
    fn all(id: u32) -> Self {
        Self { real: id, effective: id, saved: id, filesystem: id }
    }

    fn holds(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    fn hold_root(&self) -> bool {
        self.holds(0)
    }

    fn set(&mut self, id: u32, privileged: bool) -> Result<(), Errno> {
        if privileged {
            *self = Self::all(id);
        } else if id == self.real || id == self.saved {
            (self.effective, self.filesystem) = (id, id);
        } else {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    fn set_two(&mut self, real: Option<u32>, effective: Option<u32>, privileged: bool) -> Result<(), Errno> {
        let real_may = real.is_none_or(|id| id == self.real || id == self.effective);
        let may = real_may && effective.is_none_or(|id| self.holds(id));
        if !privileged && !may {
            return Err(Errno::PERM);
        }
        let before = self.real;
        self.real = real.unwrap_or(self.real);
        self.effective = effective.unwrap_or(self.effective);
        if real.is_some() || effective.is_some_and(|id| id != before) {
            self.saved = self.effective;
        }
        self.filesystem = self.effective;
        Ok(())
    }

    fn set_three(&mut self, wanted: [Option<u32>; 3], privileged: bool) -> Result<(), Errno> {
        if !privileged && !wanted.iter().flatten().all(|id| self.holds(*id)) {
            return Err(Errno::PERM);
        }
        self.real = wanted[0].unwrap_or(self.real);
        self.effective = wanted[1].unwrap_or(self.effective);
        self.saved = wanted[2].unwrap_or(self.saved);
        self.filesystem = self.effective;
        Ok(())
    }

    /// Returns the former one, whether or not it changes.
    fn set_filesystem(&mut self, wanted: Option<u32>, privileged: bool) -> i64 {
        let before = self.filesystem;
        if let Some(id) = wanted.filter(|id| privileged || self.holds(*id) || *id == before) {
            self.filesystem = id;
        }
        before.into()
    }
}

/// A process's users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uids: Ids,
    pub(super) gids: Ids,
    pub(super) groups: Vec<u32>,
    /// What it does not lose with root, if it asked for that.
    pub(super) kept: Option<Kept>,
}

/// Capabilities that outlive a change from root to another user (`PR_SET_KEEPCAPS`, capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The program that asked, by device and inode: the next one has none of it.
    pub(super) program: (u64, u64),
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is root, and asked.
    Asked,
    /// It is another user, and may take them up again.
    Permitted,
    /// It has.
    Raised,
}

/// Capabilities as `capset` is given them, of these alone: owners, groups and users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) effective: u32,
    pub(super) permitted: u32,
}

/// `CAP_CHOWN`, `CAP_SETGID`, `CAP_SETUID`.
const OF_INTEREST: u32 = 1 | 1 << 6 | 1 << 7;

impl Identity {
    pub(super) fn of(credentials: &Credentials) -> Self {
        Self {
            uids: Ids::all(credentials.uid),
            gids: Ids::all(credentials.gid),
            groups: credentials.groups.clone(),
            kept: None,
        }
    }

    /// Whether it may give files away and become another user.
    pub(super) fn is_privileged(&self) -> bool {
        self.uids.effective == 0 || self.kept.is_some_and(|kept| kept.stage == Stage::Raised)
    }

    /// Does `prctl(PR_SET_KEEPCAPS)`.
    pub(super) fn ask(&mut self, keep: bool, program: (u64, u64)) {
        match self.kept {
            None if keep && self.uids.hold_root() => {
                self.kept = Some(Kept { program, stage: Stage::Asked });
            }
            Some(Kept { stage: Stage::Asked, .. }) if !keep => self.kept = None,
            _ => {}
        }
    }

    /// Does `capset`, for who is not root any more.
    pub(super) fn set_capabilities(&mut self, wanted: Wanted) {
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.stage != Stage::Asked) else { return };
        if wanted.permitted & OF_INTEREST == 0 {
            self.kept = None;
        } else if wanted.effective & OF_INTEREST == 0 {
            kept.stage = Stage::Permitted;
        } else {
            kept.stage = Stage::Raised;
        }
    }

    /// Whether it may make these a file's owner; whether the file is its own is not looked at.
    pub(super) fn may_give(&self, uid: Option<u32>, gid: Option<u32>) -> bool {
        let own_group = |gid: u32| gid == self.gids.effective || self.groups.contains(&gid);
        self.is_privileged()
            || (uid.is_none_or(|uid| uid == self.uids.effective) && gid.is_none_or(own_group))
    }

    /// Does one of the calls that set identifiers.
    pub(super) fn change(&mut self, call: Call, arguments: [Option<u32>; 6]) -> Result<i64, Errno> {
        let privileged = self.is_privileged();
        let had_root = self.uids.hold_root();
        let [first, second, third, ..] = arguments;
        let changed = match call {
            Call::SetUid => self.uids.set(first.ok_or(Errno::INVAL)?, privileged),
            Call::SetGid => self.gids.set(first.ok_or(Errno::INVAL)?, privileged),
            Call::SetReUid => self.uids.set_two(first, second, privileged),
            Call::SetReGid => self.gids.set_two(first, second, privileged),
            Call::SetResUid => self.uids.set_three([first, second, third], privileged),
            Call::SetResGid => self.gids.set_three([first, second, third], privileged),
            Call::SetFsUid => return Ok(self.uids.set_filesystem(first, privileged)),
            Call::SetFsGid => return Ok(self.gids.set_filesystem(first, privileged)),
            _ => Err(Errno::NOSYS),
        };
        if let Some(kept) = self.kept.as_mut().filter(|_| had_root && !self.uids.hold_root()) {
            kept.stage = Stage::Permitted;
        }
        changed.map(|()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Identity {
        Identity::of(&Credentials::default())
    }

    fn call(identity: &mut Identity, call: Call, arguments: &[i64]) -> Result<i64, Errno> {
        let mut given = [None; 6];
        for (at, argument) in arguments.iter().enumerate() {
            given[at] = u32::try_from(*argument).ok();
        }
        identity.change(call, given)
    }

    #[test]
    fn privileges_that_were_dropped_do_not_come_back() {
        // What apt does for its downloads, and how it checks.
        let mut identity = root();
        assert_eq!(call(&mut identity, Call::SetResGid, &[65534, 65534, 65534]), Ok(0));
        assert_eq!(call(&mut identity, Call::SetResUid, &[100, 100, 100]), Ok(0));
        assert_eq!((identity.uids, identity.gids), (Ids::all(100), Ids::all(65534)));
        for (name, arguments) in
            [(Call::SetUid, &[0_i64][..]), (Call::SetGid, &[0]), (Call::SetReUid, &[-1, 0])]
        {
            assert_eq!(call(&mut identity, name, arguments), Err(Errno::PERM));
        }
    }

    #[test]
    fn a_saved_identifier_can_be_taken_up_again() {
        let mut identity = root();
        assert_eq!(call(&mut identity, Call::SetResUid, &[-1, 5, -1]), Ok(0));
        assert!(!identity.is_privileged());
        assert_eq!(call(&mut identity, Call::SetUid, &[0]), Ok(0));
        assert_eq!(identity.uids, Ids::all(0));
        assert_eq!(call(&mut identity, Call::SetReUid, &[7, 8]), Ok(0));
        assert_eq!(identity.uids, Ids { real: 7, effective: 8, saved: 8, filesystem: 8 });
    }

    #[test]
    fn capabilities_can_be_kept() {
        // What setpriv does: the user first, then the group.
        let none = Wanted { effective: 0, permitted: 0 };
        let all = Wanted { effective: u32::MAX, permitted: u32::MAX };
        let lowered = Wanted { effective: 1 << 10, ..all };
        let mut identity = root();
        identity.set_capabilities(none);
        identity.ask(true, (1, 2));
        assert_eq!(call(&mut identity, Call::SetResUid, &[6, 6, 6]), Ok(0));
        assert_eq!(call(&mut identity, Call::SetResGid, &[12, 12, 12]), Err(Errno::PERM));
        identity.set_capabilities(all);
        assert_eq!(call(&mut identity, Call::SetResGid, &[12, 12, 12]), Ok(0));
        assert!(identity.may_give(Some(0), Some(0)));
        identity.set_capabilities(lowered);
        assert_eq!(call(&mut identity, Call::SetUid, &[0]), Err(Errno::PERM));
        identity.set_capabilities(all);
        identity.set_capabilities(none);
        identity.set_capabilities(all);
        assert_eq!(call(&mut identity, Call::SetUid, &[0]), Err(Errno::PERM));
        for asked in [&[true, false][..], &[]] {
            let mut identity = root();
            asked.iter().for_each(|keep| identity.ask(*keep, (1, 2)));
            assert_eq!(call(&mut identity, Call::SetUid, &[6]), Ok(0));
            identity.ask(true, (1, 2));
            identity.set_capabilities(all);
            assert_eq!(call(&mut identity, Call::SetGid, &[12]), Err(Errno::PERM));
        }
    }

    #[test]
    fn filesystem_identifiers_answer_with_the_former_one() {
        let mut identity = root();
        assert_eq!(call(&mut identity, Call::SetFsUid, &[9]), Ok(0));
        assert_eq!(call(&mut identity, Call::SetFsUid, &[-1]), Ok(9));
    }

    #[test]
    fn only_root_gives_files_away() {
        let ann = Identity::of(&Credentials { uid: 5, gid: 6, groups: vec![7] });
        assert!(root().may_give(Some(1), Some(1)));
        assert!(ann.may_give(Some(5), Some(7)) && ann.may_give(None, Some(6)) && ann.may_give(None, None));
        assert!(!ann.may_give(Some(0), None) && !ann.may_give(None, Some(0)));
    }
}

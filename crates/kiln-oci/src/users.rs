//! `USER`, `--chown` and `--user`: names and numbers against an image's passwd and group bytes.
//!
//! The files belong to the image and are hostile: they are read as bytes, bounded by the caller, line by line.

/// The largest user or group number: larger ones wrap to other users in some readers (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

/// A parsed `user[:group]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// The part before the colon.
    pub user: String,
    /// The part after the colon.
    pub group: Option<String>,
}

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// User number.
    pub uid: u32,
    /// Primary group number.
    pub gid: u32,
    /// Further groups, sorted, without the primary one.
    pub additional: Vec<u32>,
    /// The home directory, if passwd names one.
    pub home: Option<String>,
}

/// Why a user or group cannot be found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// No such name in passwd.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No such name in group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// Out of range.
    #[error("user and group numbers must be from 0 to {MAX_ID}, found {0}")]
    Range(String),
}

impl UserSpec {
    /// Reads `user[:group]` as Docker and BuildKit do: an empty user is root, an empty group is none, and what is
    /// behind a second colon does not count.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(':');
        let user = parts.next().unwrap_or_default().to_owned();
        let group = parts.next().filter(|group| !group.is_empty()).map(str::to_owned);
        Self { user, group }
    }
}

/// A number if the text is one: `Err` when it is a number out of range.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match digits.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(UserError::Range(text.chars().take(40).collect())),
    }
}

struct Passwd<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

fn passwd_lines(bytes: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    bytes.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Passwd { name, uid, gid, home })
    })
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn group_lines(bytes: &[u8]) -> impl Iterator<Item = Group<'_>> {
    bytes.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id <= MAX_ID)
}

/// Finds who `spec` means. A number needs no entry; a name does. With a group named, there are no additional
/// groups, as in Docker.
pub fn find_user(spec: &UserSpec, passwd: &[u8], group: &[u8]) -> Result<Groups, UserError> {
    let user_number = number(&spec.user)?;
    let user = if spec.user.is_empty() { "0" } else { spec.user.as_str() };
    let user_number = if spec.user.is_empty() { Some(0) } else { user_number };
    let entry = passwd_lines(passwd).find(|entry| match user_number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user.as_bytes(),
    });
    let (uid, gid) = match (&entry, user_number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let home = entry
        .as_ref()
        .map(|entry| String::from_utf8_lossy(entry.home).into_owned())
        .filter(|home| !home.is_empty());
    if let Some(name) = &spec.group {
        return Ok(Groups { uid, gid: find_group(name, group)?, additional: Vec::new(), home });
    }
    // A number that is nobody's is no member's name.
    let Some(name) = entry.as_ref().map(|entry| entry.name).filter(|name| !name.is_empty()) else {
        return Ok(Groups { uid, gid, additional: Vec::new(), home });
    };
    let mut additional: Vec<u32> = group_lines(group)
        .filter(|line| line.members.split(|b| *b == b',').any(|member| member == name))
        .map(|line| line.gid)
        .filter(|additional| *additional != gid)
        .collect();
    additional.sort_unstable();
    additional.dedup();
    Ok(Groups { uid, gid, additional, home })
}

/// Finds a group by name or number.
pub fn find_group(name: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(gid) = number(name)? {
        return Ok(gid);
    }
    let found = group_lines(group).find(|line| line.name == name.as_bytes());
    found.map(|line| line.gid).ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/x\nbad:x:notanumber:1::/:\napp:x:1000:1001:,,,:/home/app:/bin/sh\nbig:x:4294967296:0::/:/x\n44:x:7:8::/:/x\n";
    const GROUP: &[u8] = b"root:x:0:\naudio:x:29:app,daemon\nvideo:x:44:app\napp:x:1001:app\n45:x:9:44\n";

    fn check(spec: &str, expect: Result<(u32, u32, &[u32]), ()>) {
        let found = find_user(&UserSpec::parse(spec), PASSWD, GROUP);
        let found = found.map(|g| (g.uid, g.gid, g.additional)).map_err(|_| ());
        assert_eq!(found, expect.map(|(u, g, a)| (u, g, a.to_vec())), "{spec}");
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        check("app", Ok((1000, 1001, &[29, 44])));
        check("1000", Ok((1000, 1001, &[29, 44])));
        check("app:audio", Ok((1000, 29, &[])));
        check("app:7", Ok((1000, 7, &[])));
        check("1234", Ok((1234, 0, &[])));
        check("1234:5678", Ok((1234, 5678, &[])));
        check("nobody", Err(()));
        check("app:nogroup", Err(()));
        check("big", Err(()));
        check("2147483648", Err(()));
        check("4294967296:0", Err(()));
        check("-1", Err(()));
        check("a:b:c", Err(()));
        check("5:", Ok((5, 0, &[])));
        check("5:6:", Ok((5, 6, &[])));
        check("5:6:7", Ok((5, 6, &[])));
        check("app:", Ok((1000, 1001, &[29, 44])));
        check(":", Ok((0, 0, &[])));
        check(":6", Ok((0, 6, &[])));
        check("+5:+6", Ok((5, 6, &[])));
        check("+", Err(()));
        check("", Ok((0, 0, &[])));
        // A number is a number, whoever is called so.
        check("44", Ok((44, 0, &[])));
        check("44:45", Ok((44, 45, &[])));
    }
}

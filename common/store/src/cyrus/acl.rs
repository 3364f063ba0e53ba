//! Access rights: Cyrus's list for a mailbox, and the file that Dovecot keeps for one.
//!
//! The letters are RFC 4314's in both. Cyrus has `n` (annotate) besides, which goes with `w` here, and
//! the old letters `c` and `d`, which say nothing of their own. An owner with all rights is not listed;
//! shared mailboxes have none.

/// Letters that both know, in Dovecot's order.
const LETTERS: &str = "lrwstipekxa";

/// The file's content for a list; `None` if it says nothing but that the owner may do everything.
pub(super) fn content(acl: &[u8], owner: Option<&str>) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(acl);
    let mut words = text.split('\t');
    let (mut lines, mut has_owner) = (Vec::new(), owner.is_none());
    while let (Some(id), Some(rights)) = (words.next(), words.next()) {
        let rights: String = LETTERS.chars().filter(|letter| rights.contains(*letter)).collect();
        let (sign, id) = id.strip_prefix('-').map_or(("", id), |id| ("-", id));
        let who = match id.strip_prefix("group:") {
            _ if Some(id) == owner => "owner".to_owned(),
            _ if id == "anyone" => id.to_owned(),
            Some(group) => format!("group={group}"),
            None => format!("user={id}"),
        };
        if who == "owner" && sign.is_empty() {
            has_owner = true;
            if rights == LETTERS {
                continue;
            }
        }
        let who = format!("{sign}{who}");
        let who = if who.contains(' ') { format!("\"{who}\"") } else { who };
        lines.push(format!("{who} {rights}\n"));
    }
    if !has_owner {
        lines.push("owner \n".to_owned());
    }
    lines.sort();
    (!lines.is_empty()).then(|| lines.concat().into_bytes())
}

/// The list for a file's content.
pub(super) fn list(content: Option<&[u8]>, owner: Option<&str>) -> Result<Vec<u8>, &'static str> {
    let content = std::str::from_utf8(content.unwrap_or_default());
    let content = content.map_err(|_| "it is not UTF-8")?;
    let (mut entries, mut has_owner) = (Vec::new(), false);
    for line in content.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (who, rights) = match line.strip_prefix('"') {
            Some(rest) => rest.split_once('"'),
            None => line.split_once([' ', '\t']),
        }
        .ok_or("a line has no rights")?;
        let rights = rights.trim();
        if !rights.chars().all(|letter| LETTERS.contains(letter)) {
            return Err("a line has rights that Cyrus does not know");
        }
        let (sign, who) = who.strip_prefix('-').map_or(("", who), |who| ("-", who));
        let id = match who.split_once('=') {
            None if who == "owner" => owner.ok_or("shared mailboxes have no owner")?.to_owned(),
            None if who == "anyone" => who.to_owned(),
            Some(("user", user)) => user.to_owned(),
            Some(("group", group)) => format!("group:{group}"),
            _ => return Err("a line names somebody whom Cyrus does not know"),
        };
        has_owner |= Some(&id[..]) == owner && sign.is_empty();
        entries.push(format!("{sign}{id}\t{}\t", cyrus_rights(rights)));
    }
    if let (Some(owner), false) = (owner, has_owner) {
        entries.insert(0, format!("{owner}\t{}\t", super::build::OWNER_RIGHTS));
    }
    Ok(entries.concat().into_bytes())
}

/// The letters as Cyrus writes them, old ones included.
fn cyrus_rights(rights: &str) -> String {
    let has = |letter: char| match letter {
        'c' => rights.contains('k'),
        'd' => rights.contains(['x', 't', 'e']),
        'n' => rights.contains('w'),
        letter => rights.contains(letter),
    };
    super::build::OWNER_RIGHTS.chars().filter(|letter| has(*letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let cases = [
            ("", "ann\tlrswipkxtecdan\t"),
            ("user=bob lr\n", "ann\tlrswipkxtecdan\tbob\tlr\t"),
            ("-user=bob r\nanyone l\n", "ann\tlrswipkxtecdan\t-bob\tr\tanyone\tl\t"),
            ("group=x lrws\n", "ann\tlrswipkxtecdan\tgroup:x\tlrswn\t"),
            ("owner lr\n", "ann\tlr\t"),
            ("\"user=b c\" l\n", "ann\tlrswipkxtecdan\tb c\tl\t"),
        ];
        for (file, acl) in cases {
            let wanted = Some(file.as_bytes()).filter(|file| !file.is_empty());
            assert_eq!(content(acl.as_bytes(), Some("ann")).as_deref(), wanted, "{acl}");
            assert_eq!(list(wanted, Some("ann")).unwrap(), acl.as_bytes(), "{file}");
        }
        assert_eq!(content(b"bob\tlr\t", Some("ann")).unwrap(), b"owner \nuser=bob lr\n");
        for bad in
            ["user=bob :create\n", "authenticated l\n", "user=bob\n", "\"user=b l\n", "user=b lz\n"]
        {
            assert!(list(Some(bad.as_bytes()), Some("ann")).is_err(), "{bad}");
        }
        assert_eq!(content(b"anyone\tlrs\t", None).unwrap(), b"anyone lrs\n");
        assert_eq!(list(Some(b"anyone lrs\n"), None).unwrap(), b"anyone\tlrs\t");
        assert_eq!((content(b"", None), list(None, None)), (None, Ok(Vec::new())));
        assert!(list(Some(b"owner lrs\n"), None).is_err());
    }
}

//! Patterns and layouts, on directories made for it.

use super::*;

fn make(root: &Path, dirs: &[&str]) {
    for dir in dirs {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
}

fn accounts(root: &Path, pattern: &str, layout: Layout) -> Vec<String> {
    let pattern = Pattern::parse(&root.join(pattern)).unwrap();
    let Some(prefix) = Dir::open(pattern.prefix()).unwrap() else { return Vec::new() };
    let mut odd = Vec::new();
    let skip = pattern.prefix().join(".mailtwin");
    let found = pattern.accounts(&prefix, layout, &skip, &mut odd).unwrap();
    for account in &found {
        let place = pattern.locate(account, &pattern).unwrap();
        assert!(prefix.beneath(&place).unwrap().is_some(), "{account}");
    }
    found.iter().map(|account| account.as_str().to_owned()).collect()
}

#[test]
fn accounts_of_patterns() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path();
    make(
        root,
        &[
            "v/a.org/ann/Maildir/cur",
            "v/a.org/bob/Maildir/.Work/cur",
            "v/a.org/eve/Maildir",
            "v/b.org/50%\u{e9}/Maildir/cur",
            "v/.mailtwin/x/Maildir/cur",
            "flat/ann@a.org/cur",
            "flat/x@y@b.org/cur",
            "tree/deep/er/box/cur",
            "tree/deep/er/box/.Sub/cur",
            "tree/one/cur",
            "tree/+shared/news/linux/cur",
        ],
    );
    let cases = [
        ("v/{domain}/{user}/Maildir", vec!["50%25\u{e9}@b.org", "ann@a.org", "bob@a.org"]),
        ("flat/{user}@{domain}", vec!["ann@a.org", "x@y@b.org"]),
        ("flat/{user}", vec!["ann@a.org", "x@y@b.org"]),
        ("tree/{path}", vec!["+shared", "deep/er/box", "one"]),
        ("tree/one/{path}", vec![""]),
        ("tree/one", vec![""]),
    ];
    for (pattern, want) in cases {
        assert_eq!(accounts(root, pattern, Layout::MaildirPlusPlus), want, "{pattern}");
    }
    for bad in [
        "/",
        "relative",
        "/a/../b",
        "/a/{users}",
        "/a/{user}{domain}",
        "/{path}/x",
        "/{user}/{path}",
    ] {
        assert!(Pattern::parse(Path::new(bad)).is_err(), "{bad}");
    }
}

#[test]
fn hostile_account_names_stay_inside() {
    let pattern = Pattern::parse(Path::new("/v/{domain}/{user}/Maildir")).unwrap();
    for bad in ["ann", "ann@", "@b", "..@b", "a@..", "%2E%2E@b", "a%2Fb@c", "a%00@c", "%2", "%zz@c"]
    {
        let account = Account::new(bad).unwrap();
        assert!(pattern.locate(&account, &pattern).is_err(), "{bad}");
    }
    let tree = Pattern::parse(Path::new("/v/{path}")).unwrap();
    for bad in ["%2E%2E", "a/%2E%2E/b", "%2Fetc", "a%00"] {
        assert!(tree.locate(&Account::new(bad).unwrap(), &tree).is_err(), "{bad}");
    }
    let home = pattern.parent().unwrap();
    let ann = Account::new("a%FFn@b").unwrap();
    assert_eq!(home.locate(&ann, &pattern).unwrap().as_os_str().as_bytes(), b"b/a\xffn");
}

#[test]
fn mailboxes_of_layouts() {
    let temporary = tempfile::tempdir().unwrap();
    make(
        temporary.path(),
        &[
            "cur",
            "new",
            ".Work",
            ".Work.Sub",
            "..DOVECOT-TRASHED",
            ".a..b",
            "Plain/Sub/cur",
            "dovecot",
        ],
    );
    let dir = Dir::open(temporary.path()).unwrap().unwrap();
    let names = |layout: Layout, odd: &mut Vec<PathBuf>| {
        let names = layout.mailboxes(&dir, odd).unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut odd = Vec::new();
    assert_eq!(names(Layout::MaildirPlusPlus, &mut odd), ["INBOX", "Work", "Work/Sub"]);
    assert_eq!(odd.len(), 1);
    assert_eq!(names(Layout::Fs, &mut odd), ["INBOX", "Plain", "Plain/Sub"]);
    let name = |text: &str| MailboxName::new(text.as_bytes()).unwrap();
    let flat = Layout::MaildirPlusPlus;
    assert_eq!(flat.directory(&name("a/b")).unwrap(), Path::new(".a.b"));
    assert_eq!(Layout::Fs.directory(&name("a/b")).unwrap(), Path::new("a/b"));
    assert!(flat.directory(&name("a.b")).is_err());
    assert!(Layout::Fs.directory(&name("a/cur")).is_err());
    assert!(flat.directory(&name(&"x".repeat(300))).is_err());
}

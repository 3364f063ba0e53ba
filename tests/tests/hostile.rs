//! Agents with a valid key that mean harm: they get nowhere outside the store, and end no daemon (I9).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use mailtwin_host::net::Kind;
use mailtwin_logic::{
    ids::{Epoch, Guid, Uid},
    mailbox::{FileKey, Head, Record},
    plan::{Change, Mode, Step},
    wire::message::{Abort, Apply, Greeting, Reply, Request, decode, encode},
};
use mailtwin_tests::{
    files,
    hostile::{BODY, Site, account, build, mailbox, record, set_file},
    lab::Lab,
    peer::{Peer, hello},
    random::Random,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The first kind of request that is about roles, not mail.
const PREFLIGHT: u8 = 6;

/// Everything in the lab's folder that is not the replica's to write.
fn others(lab: &Lab, site: &Site) -> anyhow::Result<Vec<PathBuf>> {
    let own = [site.pair.replica.mail_root(), site.pair.copy.state_dir(), site.pair.copy.run_dir()];
    let mut found = files::walk(lab.dir())?;
    // Servers and daemons write logs, sockets and process numbers beside their mail.
    found.retain(|path| {
        let is_own = own.iter().any(|own| path.starts_with(own));
        let is_mail = path.components().any(|part| {
            ["cur", "mail", "Maildir", "sieve", "x.sieve", "evil"]
                .iter()
                .any(|name| part.as_os_str() == *name)
        });
        !is_own && is_mail
    });
    Ok(found)
}

#[test]
fn names_that_lead_out_get_nowhere() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let site = Site::new(lab)?;
        let before = others(lab, &site)?;
        let id = [7_u8; 16];
        // Names that no request may hold end the connection.
        for name in ["..", "../x", "/etc/x", "a/../../x", "a//b", "a\0b", "a\nb", &"x".repeat(1100)]
        {
            let requests = [
                encode(&(1_u8, name)),
                encode(&(2_u8, name, id)),
                encode(&(3_u8, name, 0_u8)),
                encode(&(4_u8, name, 0_u8, Some(b"x".to_vec()))),
                encode(&(4_u8, "u1", 1_u8, name.as_bytes().to_vec(), Some(b"x".to_vec()))),
                encode(&(4_u8, "u1", 2_u8, name.as_bytes().to_vec(), Some(b"x".to_vec()))),
            ];
            for request in requests {
                let control_may_be = name == "a\nb" && request.starts_with(&[4, 2, b'u']);
                let answer = site.greet()?.ask(&request)?;
                ensure!(answer.is_none() || control_may_be, "{name:?}: {answer:?}");
            }
        }
        // Names that may stand in a request, and in no path.
        let mut peer = site.greet()?;
        let accounts = [
            "%2E%2E",
            "..%2F..%2Fx",
            "%2Fetc",
            "%00",
            "a%2F..%2F..",
            "u1/Maildir",
            ".mailtwin",
            "%",
        ];
        for name in accounts {
            for request in [
                set_file(name, FileKey::Subscriptions, b"evil"),
                set_file(name, FileKey::Sieve(mailbox("evil.sieve")), b"evil"),
                set_file(name, FileKey::SieveActive, b"sieve/evil.sieve"),
            ] {
                let answer = peer.ask(&request)?;
                ensure!(matches!(answer, Some(Reply::Failed(_))), "{name}: {answer:?}");
            }
            let answer = peer.apply(build(name, "evil"), &[BODY])?;
            ensure!(matches!(answer, Some(Reply::Failed(_))), "{name}: {answer:?}");
        }
        let long = "x".repeat(300);
        for name in ["a.b", "a/b.c", &long] {
            let answer = peer.apply(build("u1", name), &[BODY])?;
            ensure!(matches!(answer, Some(Reply::Failed(_))), "{name}: {answer:?}");
        }
        for target in ["/etc/passwd", "../../../outside/x.sieve", "sieve/../../x", "", "."] {
            let answer = peer.ask(&set_file("u1", FileKey::SieveActive, target.as_bytes()))?;
            ensure!(matches!(answer, Some(Reply::Failed(_))), "{target}: {answer:?}");
        }
        for script in ["evil", "evil.sieve/x", "dovecot.svbin"] {
            let answer = peer.ask(&set_file("u1", FileKey::Sieve(mailbox(script)), b"keep;"))?;
            ensure!(matches!(answer, Some(Reply::Failed(_))), "{script}: {answer:?}");
        }
        let huge = vec![b'x'; (512 << 10) + 1];
        let answer = peer.ask(&set_file("u1", FileKey::Subscriptions, &huge))?;
        ensure!(matches!(answer, Some(Reply::Failed(_))), "a long file: {answer:?}");
        let after = others(lab, &site)?;
        ensure!(before == after, "something was made: {after:?}");
        site.expect_unharmed(lab)
    })
}

#[test]
fn links_in_the_store_lead_nowhere() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let site = Site::new(lab)?;
        let out = site.outside.display().to_string();
        let mail = site.pair.replica.mail_root();
        let mut peer = site.greet()?;
        // A mailbox of each kind that is ours already, and then gets links in it.
        for name in ["Cur", "Tmp", "List", "Lock", "Words", "Gone"] {
            let answer = peer.apply(build("u1", name), &[BODY])?;
            ensure!(matches!(answer, Some(Reply::Applied(_))), "{name}: {answer:?}");
        }
        let at = |name: &str| site.maildir("u1").join(format!(".{name}"));
        let replace = |path: &Path, target: &str| -> anyhow::Result<()> {
            if path.is_dir() {
                fs::rename(path, path.with_extension("before"))?;
            }
            files::link_mail(target, path)
        };
        replace(&at("Cur").join("cur"), &format!("{out}/cur"))?;
        replace(&at("Tmp").join("tmp"), &format!("{out}/tmp"))?;
        replace(&at("List").join("dovecot-uidlist"), &format!("{out}/list"))?;
        replace(&at("Lock").join("dovecot-uidlist.lock"), &format!("{out}/lock"))?;
        replace(&at("Words").join("dovecot-keywords"), &format!("{out}/keywords"))?;
        replace(&at("Gone"), &out)?;
        replace(&at("New"), &out)?;
        replace(&site.maildir("u1").join("subscriptions"), &format!("{out}/subscriptions"))?;
        replace(&mail.join("u1/sieve"), &format!("{out}/sieve"))?;
        replace(&mail.join("u1/.dovecot.sieve"), &format!("{out}/x.sieve"))?;
        replace(&mail.join("u2"), &out)?;
        files::make_mail_dir(&mail.join("u3"))?;
        replace(&mail.join("u3/Maildir"), "../../../outside/Maildir")?;
        let marked = |apply: Apply| {
            let record = Record { keywords: ["word"].into_iter().collect(), ..record(2) };
            Apply { mode: Mode::Update, changes: vec![Change::Add(record)], ..apply }
        };
        for name in ["Cur", "Tmp", "List", "Lock", "Words", "Gone", "New", "New/Sub", "Gone/b"] {
            let head = head_of(&mut peer, name)?;
            for mode in [Mode::Update, Mode::Repair] {
                let apply = Apply { mode, expect: head, ..marked(build("u1", name)) };
                peer.apply(apply, &[BODY])?;
            }
            peer.apply(build("u1", name), &[BODY])?;
            let id = build("u1", name).mailbox;
            let steps = vec![
                Step::Rename { id, from: mailbox(name), to: mailbox("New/Moved") },
                Step::Delete { id, name: mailbox(name) },
            ];
            for step in steps {
                peer.ask(&encode(&Request::Restructure {
                    account: account("u1"),
                    steps: vec![step],
                }))?;
            }
            peer.ask(&set_file("u1", FileKey::Acl(mailbox(name)), b"user=eve lr\n"))?;
        }
        for user in ["u1", "u2", "u3"] {
            peer.apply(build(user, ""), &[BODY])?;
            peer.apply(build(user, "b"), &[BODY])?;
            peer.ask(&set_file(user, FileKey::Subscriptions, b"evil"))?;
            peer.ask(&set_file(user, FileKey::Sieve(mailbox("evil.sieve")), b"keep;"))?;
            peer.ask(&set_file(user, FileKey::SieveActive, b"sieve/evil.sieve"))?;
            peer.ask(&encode(&Request::Account(account(user))))?;
        }
        peer.expect_answer()?;
        // An admin takes the links away, and a real agent makes all well.
        for user in ["u1", "u2", "u3"] {
            let path = mail.join(user);
            if path.is_symlink() { fs::remove_file(&path)? } else { fs::remove_dir_all(&path)? }
        }
        site.expect_unharmed(lab)
    })
}

/// The head of a mailbox of `u1`, if the replica shows it.
fn head_of(peer: &mut Peer, name: &str) -> anyhow::Result<Option<Head>> {
    let request = Request::Records { account: account("u1"), mailbox: build("u1", name).mailbox };
    Ok(match peer.ask(&encode(&request))? {
        Some(Reply::Records { state, .. }) => state.map(|state| state.head),
        _ => None,
    })
}

#[test]
fn no_swap_of_directories_and_links_leads_out() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let site = Site::new(lab)?;
        let mut peer = site.greet()?;
        for name in ["", "Race"] {
            let answer = peer.apply(build("u1", name), &[BODY])?;
            ensure!(matches!(answer, Some(Reply::Applied(_))), "{name}: {answer:?}");
        }
        let home = site.pair.replica.home("u1");
        let out = site.outside.display().to_string();
        // Each is swapped with a link to a directory of the same shape.
        let swaps = [
            (home.join("Maildir/.Race"), home.join("Maildir/link"), out.clone()),
            (home.join("Maildir/.Race/cur"), home.join("Maildir/.Race/link"), format!("{out}/cur")),
            (home.join("Maildir"), home.join("link"), out.clone()),
            (home.clone(), site.pair.replica.mail_root().join("link"), out),
        ];
        let (done, count, applied) =
            (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        for (real, link, target) in &swaps {
            files::link_mail(target, link)?;
            done.store(false, Ordering::Relaxed);
            let (done, count) = (&done, &count);
            thread::scope(|scope| -> anyhow::Result<()> {
                let swap = || renameat_with(CWD, real, CWD, link, RenameFlags::EXCHANGE);
                let swapper = scope.spawn(move || -> anyhow::Result<()> {
                    while !done.load(Ordering::Relaxed) {
                        // Both ways, so that it ends as it began.
                        swap()?;
                        swap()?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                });
                let result = hammer(&mut peer, &applied);
                done.store(true, Ordering::Relaxed);
                swapper.join().expect("it does not panic")?;
                result
            })?;
            fs::remove_file(link)?;
        }
        let (count, applied) = (count.into_inner(), applied.into_inner());
        ensure!(count > 1000 && applied > 20, "{count} swaps, {applied} changes applied");
        drop(peer);
        fs::remove_dir_all(&home)?;
        site.expect_unharmed(lab)
    })
}

/// Changes of every kind in the INBOX and `Race` of `u1`, many times.
fn hammer(peer: &mut Peer, applied: &AtomicUsize) -> anyhow::Result<()> {
    for round in 0..60 {
        for name in ["", "Race"] {
            let head = head_of(peer, name)?;
            let uid_next = head.map_or(1, |head| head.uid_next.0);
            let mode = if round % 5 == 4 { Mode::Repair } else { Mode::Update };
            let target = Head { uid_next: Uid(uid_next + 1), ..head.unwrap_or_default() };
            let add = vec![Change::Add(record(uid_next))];
            let apply = Apply { mode, expect: head, target, changes: add, ..build("u1", name) };
            let answer = peer.apply(apply, &[BODY])?;
            let built = peer.apply(build("u1", name), &[BODY])?;
            for answer in [answer, built] {
                applied.fetch_add(
                    usize::from(matches!(answer, Some(Reply::Applied(_)))),
                    Ordering::Relaxed,
                );
            }
            peer.ask(&set_file("u1", FileKey::Acl(mailbox(name)), b"user=eve lr\n"))?;
        }
        peer.ask(&set_file("u1", FileKey::Subscriptions, b"evil"))?;
        peer.ask(&set_file("u1", FileKey::Sieve(mailbox("evil.sieve")), b"keep;"))?;
        peer.ask(&set_file("u1", FileKey::SieveActive, b"sieve/evil.sieve"))?;
    }
    Ok(())
}

#[test]
fn applies_that_make_no_sense_are_refused() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let site = Site::new(lab)?;
        let mut peer = site.greet()?;
        let with = |change: &dyn Fn(&mut Record)| {
            let mut record = record(1);
            change(&mut record);
            Apply { changes: vec![Change::Add(record)], ..build("u1", "Work") }
        };
        let nonsense = [
            ("another GUID", with(&|record| record.guid = Guid([1; 20]))),
            ("UID 0", with(&|record| record.uid = Uid(0))),
            ("the last UID", with(&|record| record.uid = Uid(u32::MAX))),
            ("no keyword", with(&|record| record.keywords = ["a b"].into_iter().collect())),
            ("a line", with(&|record| record.keywords = ["a\n0 b"].into_iter().collect())),
            ("twice", Apply { changes: vec![Change::Add(record(1)); 2], ..build("u1", "Work") }),
            ("nothing there", Apply { mode: Mode::Update, ..build("u1", "Work") }),
        ];
        for (what, apply) in nonsense {
            let answer = peer.apply(apply, &[BODY, BODY])?;
            let refused = matches!(
                answer,
                Some(Reply::Failed(_) | Reply::FailedMessage(..) | Reply::Stale(_))
            );
            ensure!(refused, "{what}: {answer:?}");
        }
        // Names and hints that would lead out make the replica choose a name of its own.
        let hints = [":../../../outside/x", ":/etc/x", ":a\0b", ":.x", "G1", ":a\nb", "G\n :x"];
        for (number, hint) in (0..).zip(hints) {
            let name = format!("Hint{number}");
            let hinted = Record { hint: hint.as_bytes().into(), ..record(1) };
            let apply = Apply { changes: vec![Change::Add(hinted)], ..build("u1", &name) };
            let answer = peer.apply(apply, &[BODY])?;
            ensure!(matches!(answer, Some(Reply::Applied(_))), "{hint:?}: {answer:?}");
            let cur = site.maildir("u1").join(format!(".{name}/cur"));
            ensure!(fs::read_dir(&cur)?.count() == 1, "{hint:?}: one file in cur");
        }
        // Fewer octets than announced, and none, and more: the others are served meanwhile.
        let start = |peer: &mut Peer, name: &str| {
            // Octets that the replica has nowhere yet.
            let unknown = Record { guid: Guid([2; 20]), ..record(1) };
            let apply = Apply { changes: vec![Change::Add(unknown)], ..build("u1", name) };
            let stream = peer.open(&encode(&Request::Apply(apply)))?;
            let need = peer.reply(stream)?;
            ensure!(matches!(need, Some(Reply::Need(_))), "{need:?}");
            anyhow::Ok(stream)
        };
        let short = start(&mut peer, "Short")?;
        peer.frame(Kind::Octets, short, &BODY[..3])?;
        let long = start(&mut peer, "Long")?;
        peer.frame(Kind::Octets, long, &[BODY, BODY].concat())?;
        let aborted = start(&mut peer, "Aborted")?;
        peer.message(aborted, &Abort)?;
        let strange = start(&mut peer, "Strange")?;
        peer.frame(Kind::Message, strange, b"\xff\xff")?;
        // Octets for a stream that is not there, and a stream number that was.
        peer.frame(Kind::Octets, 0x7fff_ffff, b"")?;
        drop(peer);
        let mut peer = site.greet()?;
        for name in ["Short", "Long", "Aborted", "Strange", "Work"] {
            ensure!(head_of(&mut peer, name)?.is_none(), "{name} was made");
        }
        // In slices of one octet, all is as usual.
        let header =
            mailtwin_logic::wire::frame::Header { octets: 1, stream: 77, kind: Kind::Message };
        let header = header.encode().context("a header")?;
        for octet in header.iter().chain(&encode(&Request::Accounts)) {
            peer.raw(&[*octet])?;
        }
        ensure!(matches!(peer.reply(77)?, Some(Reply::Accounts { .. })), "an answer");
        drop(peer);
        fs::remove_dir_all(site.pair.replica.home("u1"))?;
        site.expect_unharmed(lab)
    })
}

#[test]
fn noise_with_a_valid_key_harms_nobody() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let site = Site::new(lab)?;
        let mut random = Random::new(7);
        let id = build("u1", "Work").mailbox;
        let requests = [
            encode(&Request::Accounts),
            encode(&Request::Account(account("u1"))),
            encode(&Request::Records { account: account("u1"), mailbox: id }),
            encode(&Request::Apply(build("u1", "Work"))),
            set_file("u1", FileKey::Subscriptions, b"V\t2\n"),
            set_file("u1", FileKey::Sieve(mailbox("a.sieve")), b"keep;"),
        ];
        // Greetings of all kinds: none is let in.
        let epoch = Epoch(1);
        let long = "x".repeat(1 << 19);
        for name in ["", "stranger", "master-node\n", site.pair.copy.name(), &long] {
            let mut peer = Peer::dial(&site.pair.agent, &site.pair.copy)?;
            peer.message(0, &hello(name, epoch))?;
            let answer = peer.receive()?.and_then(|frame| decode::<Greeting>(&frame.payload));
            ensure!(!matches!(answer, Some(Greeting::Welcome { .. })), "{name:?} is let in");
        }
        // Kinds of request that there are not, and requests with some octets wrong.
        let mut sessions = 0;
        for kind in 100..=127_u8 {
            if site.greet()?.ask(&[kind])?.is_some() {
                anyhow::bail!("request {kind} is answered");
            }
            sessions += 1;
        }
        let mut peer = site.greet()?;
        for _ in 0..3000 {
            let mut request = random.pick(&requests).cloned().unwrap_or_default();
            for _ in 0..=random.below(3) {
                let at = random.below(request.len());
                if let Some(octet) = request.get_mut(at) {
                    *octet ^= 1 << random.below(8);
                }
            }
            if request.first().is_some_and(|&kind| kind >= PREFLIGHT) {
                continue; // a master may well make this node the master
            }
            request.truncate(random.below(4 * request.len()).max(1));
            // An apply waits for octets: nobody waits for it.
            let sent = peer.open(&request).is_ok() && peer.raw(&[]).is_ok();
            if !sent || random.below(20) == 0 {
                peer = site.greet()?;
                sessions += 1;
            }
        }
        ensure!(sessions > 100, "{sessions} sessions");
        drop(peer);
        let home = site.pair.replica.home("u1");
        if home.exists() {
            fs::remove_dir_all(home)?;
        }
        site.expect_unharmed(lab)
    })
}

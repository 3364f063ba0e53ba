//! The feed on real directories: a Maildir store, real inotify.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use mailtwin_disk::{clock::SystemClock, index::Index};
use mailtwin_logic::{ids::Account, mailbox::MailboxName};
use mailtwin_store::maildir::{Maildir, MaildirOptions};

use super::*;

/// Collects targets; busy or closed when told.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<(Vec<Target>, Option<Offer>)>>);

impl Collected {
    fn lock(&self) -> MutexGuard<'_, (Vec<Target>, Option<Offer>)> {
        self.0.lock().unwrap()
    }

    fn clear(&self) {
        self.lock().0.clear();
    }

    fn has(&self, target: &Target) -> bool {
        self.lock().0.contains(target)
    }
}

impl Sink for Collected {
    fn keep(&self, targets: &[Target]) -> Offer {
        self.offer(targets)
    }

    fn offer(&self, targets: &[Target]) -> Offer {
        let mut collected = self.lock();
        if let Some(refusal) = collected.1 {
            return refusal;
        }
        collected.0.extend_from_slice(targets);
        Offer::Taken
    }
}

struct Rig {
    root: tempfile::TempDir,
    store: Arc<Maildir>,
    collected: Collected,
    source: Source,
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let clock = SystemClock::shared();
    let deadline = clock.monotonic() + Duration::from_secs(20);
    while !is() {
        assert!(clock.monotonic() < deadline, "{what}");
        clock.pause(Duration::from_millis(1));
    }
}

fn maildir(path: &Path) {
    for part in ["tmp", "new", "cur"] {
        fs::create_dir_all(path.join(part)).unwrap();
    }
}

fn open_store(root: &Path) -> Arc<Maildir> {
    let mail = root.join("mail");
    let (index, _) = Index::open(&root.join("index")).unwrap();
    let options = MaildirOptions {
        assigns_uids: true,
        ..MaildirOptions::new(&mail.join("{domain}/{user}/Maildir"), &root.join("identity"))
    };
    Arc::new(Maildir::open(options, index, SystemClock::shared()).unwrap())
}

impl Rig {
    fn new(users: &[&str], options: Options) -> Self {
        let root = tempfile::tempdir().unwrap();
        for user in users {
            maildir(&root.path().join("mail/example.org").join(user).join("Maildir"));
        }
        fs::create_dir_all(root.path().join("mail")).unwrap();
        let store = open_store(root.path());
        let collected = Collected::default();
        let source =
            Source::start(store.clone(), collected.clone(), options, SystemClock::shared());
        let rig = Self { root, store, collected, source: source.unwrap() };
        wait_until("everything is watched", || *rig.source.watching().borrow());
        rig
    }

    fn user(&self, user: &str) -> PathBuf {
        self.root.path().join("mail/example.org").join(user)
    }

    fn mail(&self, user: &str) -> PathBuf {
        self.user(user).join("Maildir")
    }

    fn expect(&self, target: &Target) {
        wait_until(&format!("{target} is reported"), || self.collected.has(target));
        self.collected.clear();
    }

    /// Nothing but what comes now is reported: makes sure that the feed has caught up.
    fn settle(&self, user: &str) {
        File::create(self.mail(user).join("cur/settle")).unwrap();
        wait_until("it settles", || self.collected.has(&mailbox(user, "")));
        self.collected.clear();
        fs::remove_file(self.mail(user).join("cur/settle")).unwrap();
        wait_until("it settles", || self.collected.has(&mailbox(user, "")));
        self.collected.clear();
    }
}

fn account(user: &str) -> Target {
    Target::Account(Account::new(&format!("{user}@example.org")).unwrap())
}

fn mailbox(user: &str, name: &str) -> Target {
    let account = Account::new(&format!("{user}@example.org")).unwrap();
    Target::Mailbox(account, MailboxName::new(name.as_bytes()).unwrap())
}

fn deliver(mail: &Path, name: &str) {
    File::create(mail.join("tmp").join(name)).unwrap();
    fs::rename(mail.join("tmp").join(name), mail.join("new").join(name)).unwrap();
}

/// Whoever waits for the feed to have caught up waits for nothing that never comes, and is told
/// neither before what he saw is reported.
#[tokio::test]
async fn the_feed_of_a_store_without_a_journal_catches_up() {
    let rig = Rig::new(&["ann"], Options::default());
    let barrier = rig.source.barrier();
    for number in 0..8 {
        rig.collected.clear();
        deliver(&rig.mail("ann"), &format!("{number}.a"));
        let passed = tokio::time::timeout(Duration::from_secs(20), barrier.passed());
        assert!(passed.await.is_ok(), "{number}: caught up");
        assert!(rig.collected.has(&mailbox("ann", "")), "{number}: reported");
    }
}

/// The same of a mailbox that is new: it is watched before it is reported.
#[tokio::test]
async fn the_feed_catches_up_with_new_places() {
    let rig = Rig::new(&["ann"], Options::default());
    let barrier = rig.source.barrier();
    for number in 0..12 {
        rig.collected.clear();
        maildir(&rig.mail("ann").join(format!(".F{number}")));
        barrier.passed().await;
        assert!(rig.collected.has(&account("ann")), "{number}: reported");
    }
}

#[test]
fn every_account_is_reported_at_the_start() {
    let rig = Rig::new(&["ann", "bob"], Options::default());
    for user in ["ann", "bob"] {
        assert!(rig.collected.has(&account(user)), "{user}");
    }
    assert_eq!(rig.source.counts().watches(), 10);
    assert_eq!(rig.source.counts().unwatched(), 0);
}

#[test]
fn deliveries_flags_and_expunges_are_reported() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.collected.clear();
    let mail = rig.mail("ann");
    deliver(&mail, "1.a");
    rig.expect(&mailbox("ann", ""));
    fs::rename(mail.join("new/1.a"), mail.join("cur/1.a:2,S")).unwrap();
    rig.expect(&mailbox("ann", ""));
    fs::remove_file(mail.join("cur/1.a:2,S")).unwrap();
    rig.expect(&mailbox("ann", ""));
    File::create(mail.join("dovecot-uidlist.lock")).unwrap();
    fs::remove_file(mail.join("dovecot-uidlist.lock")).unwrap();
    rig.expect(&mailbox("ann", ""));
}

#[test]
fn what_means_nothing_is_not_reported() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.settle("ann");
    let mail = rig.mail("ann");
    for name in ["dovecot.index.log", "dovecot.list.index.log", "maildirsize", "tmp/x"] {
        File::create(mail.join(name)).unwrap();
    }
    File::create(mail.join("dovecot-uidlist.lock")).unwrap();
    File::create(mail.join("subscriptions.lock")).unwrap();
    deliver(&mail, "1.a");
    wait_until("the delivery is reported", || rig.collected.has(&mailbox("ann", "")));
    assert!(rig.collected.lock().0.iter().all(|target| *target == mailbox("ann", "")));
}

#[test]
fn mailboxes_come_go_and_move() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.collected.clear();
    let mail = rig.mail("ann");
    maildir(&mail.join(".Work"));
    wait_until("it is watched", || rig.source.counts().watches() >= 9);
    rig.expect(&account("ann"));
    rig.settle("ann");
    deliver(&mail.join(".Work"), "1.a");
    rig.expect(&mailbox("ann", "Work"));
    fs::rename(mail.join(".Work"), mail.join(".Office")).unwrap();
    rig.expect(&account("ann"));
    deliver(&mail.join(".Office"), "2.a");
    rig.expect(&mailbox("ann", "Office"));
    rig.settle("ann");
    let before = rig.source.counts().watches();
    fs::remove_dir_all(mail.join(".Office")).unwrap();
    wait_until("it is watched no more", || rig.source.counts().watches() == before - 3);
    assert!(rig.collected.has(&account("ann")));
}

#[test]
fn a_message_that_comes_with_its_mailbox_is_not_missed() {
    let rig = Rig::new(&["ann"], Options::default());
    for number in 0..20 {
        rig.collected.clear();
        let (aside, name) = (rig.root.path().join("aside"), format!("F{number}"));
        maildir(&aside);
        deliver(&aside, "1.a");
        fs::rename(&aside, rig.mail("ann").join(format!(".{name}"))).unwrap();
        rig.expect(&account("ann"));
        deliver(&rig.mail("ann").join(format!(".{name}")), "2.a");
        let seen =
            || rig.collected.has(&mailbox("ann", &name)) || rig.collected.has(&account("ann"));
        wait_until("the next one is seen", seen);
    }
}

#[test]
fn accounts_come_and_go_with_their_domains() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.collected.clear();
    maildir(&rig.mail("bob"));
    rig.expect(&account("bob"));
    let place = rig.root.path().join("mail/example.net/eve/Maildir");
    maildir(&place);
    let eve = Target::Account(Account::new("eve@example.net").unwrap());
    rig.expect(&eve);
    let inbox = Target::Mailbox(Account::new("eve@example.net").unwrap(), MailboxName::inbox());
    // What follows the report of a new account is seen: it is watched by then.
    deliver(&place, "1.a");
    rig.expect(&inbox);
    rig.collected.clear();
    fs::remove_dir_all(rig.user("bob")).unwrap();
    rig.expect(&account("bob"));
    assert_eq!(rig.store.accounts().unwrap().len(), 2);
}

/// Looking at a mailbox may give messages UIDs, under the lock whose removal is reported: that
/// must die down by itself.
#[test]
fn what_a_visit_writes_is_visited_at_most_a_few_times() {
    let rig = Rig::new(&["ann"], Options::default());
    deliver(&rig.mail("ann"), "1.a");
    rig.expect(&mailbox("ann", ""));
    let ann = Account::new("ann@example.org").unwrap();
    for _ in 0..5 {
        let listing = rig.store.account(&ann).unwrap().unwrap();
        assert_eq!(listing.state.mailboxes[0].head.messages, 1);
        // What was written is reported before this.
        File::create(rig.mail("ann").join("subscriptions")).unwrap();
        wait_until("the feed has caught up", || rig.collected.has(&account("ann")));
        let is_quiet = !rig.collected.has(&mailbox("ann", ""));
        rig.collected.clear();
        if is_quiet {
            return;
        }
    }
    panic!("a visit causes the next one for ever");
}

#[test]
fn files_beside_mailboxes_are_reported() {
    let rig = Rig::new(&["ann"], Options::default());
    let (home, mail) = (rig.user("ann"), rig.mail("ann"));
    rig.settle("ann");
    File::create(mail.join("subscriptions.lock")).unwrap();
    fs::rename(mail.join("subscriptions.lock"), mail.join("subscriptions")).unwrap();
    rig.expect(&account("ann"));
    File::create(mail.join("dovecot-acl")).unwrap();
    rig.expect(&account("ann"));
    fs::create_dir(home.join("sieve")).unwrap();
    rig.expect(&account("ann"));
    rig.settle("ann");
    File::create(home.join("sieve/spam.sieve")).unwrap();
    rig.expect(&account("ann"));
    rig.settle("ann");
    symlink("sieve/spam.sieve", home.join(".dovecot.sieve")).unwrap();
    rig.expect(&account("ann"));
}

#[test]
fn too_few_watches_are_counted_and_made_up_for_by_scans() {
    let options = Options { watches_max: 12, ..Options::default() };
    let rig = Rig::new(&["ann", "bob", "eve"], options);
    let counts = rig.source.counts();
    assert!(counts.refused() > 0 && counts.unwatched() >= 1, "{counts:?}");
    assert!(counts.watches() <= 12);
    for user in ["ann", "bob", "eve"] {
        assert!(rig.collected.has(&account(user)), "{user}");
    }
}

#[test]
fn the_periodic_rescan_reports_every_account_again() {
    let options = Options { rescan: Duration::from_millis(60), ..Options::default() };
    let rig = Rig::new(&["ann", "bob"], options);
    rig.collected.clear();
    rig.expect(&account("ann"));
    rig.expect(&account("bob"));
}

#[test]
fn a_busy_log_is_asked_again_and_loses_nothing() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.settle("ann");
    rig.collected.lock().1 = Some(Offer::Busy);
    deliver(&rig.mail("ann"), "1.a");
    maildir(&rig.mail("bob"));
    wait_until("bob is watched", || rig.source.counts().watches() >= 9);
    rig.collected.lock().1 = None;
    wait_until("both are reported", || {
        rig.collected.has(&mailbox("ann", "")) && rig.collected.has(&account("bob"))
    });
}

#[test]
fn an_overflow_becomes_a_look_at_everything() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.settle("ann");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let cur = rig.mail("ann").join("cur");
    let stuck = rig.collected.lock();
    deliver(&rig.mail("ann"), "1.a");
    let name = |turn: usize| cur.join(format!("{}", turn % 2));
    File::create(name(0)).unwrap();
    for turn in 0..2 * limit {
        fs::rename(name(turn), name(turn + 1)).unwrap();
    }
    drop(stuck);
    wait_until("the queue overflows", || rig.source.counts().overflows() > 0);
    wait_until("everything is looked at", || rig.collected.has(&Target::Store));
}

#[test]
fn the_feed_ends_when_dropped_and_when_nobody_takes_anything() {
    let rig = Rig::new(&["ann"], Options::default());
    rig.collected.lock().1 = Some(Offer::Closed);
    deliver(&rig.mail("ann"), "1.a");
    drop(rig.source);
}

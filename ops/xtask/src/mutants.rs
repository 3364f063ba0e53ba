//! `cargo xtask mutants`: puts one deliberate bug after the other into a copy of the workspace, and
//! runs the simulation's tests on it, or those of power cuts. Each bug must be caught.

mod syncs;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bench::report::talk;

/// What to try.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only bugs whose description contains this.
    #[arg(long)]
    only: Option<String>,
    /// Stories told to each.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// Leaves out one sync after the other instead, and cuts power.
    #[arg(long)]
    power_cuts: bool,
}

/// A deliberate bug.
struct Mutant {
    what: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const LINK: &str = "common/logic/src/link.rs";
const PLAN: &str = "common/logic/src/plan.rs";
const CARRY: &str = "agent/src/visit/merge/carry.rs";
const RECONCILE: &str = "common/logic/src/reconcile.rs";
const VISIT: &str = "agent/src/visit/mailbox.rs";
const OLDEST: &str = "self.running.values().map(|covers| covers.first).chain(waiting).min()";

const MUTANTS: &[Mutant] = &[
    Mutant {
        what: "the cursor overtakes visits that run",
        file: LINK,
        from: OLDEST,
        to: "waiting",
    },
    Mutant {
        what: "the cursor overtakes visits that wait",
        file: LINK,
        from: OLDEST,
        to: "{ let _ = waiting; self.running.values().map(|covers| covers.first).min() }",
    },
    Mutant {
        what: "a mailbox that was moved away passes for who came to its place",
        file: "agent/src/visit/mailbox.rs",
        from: "Ok((delta, unread)) if delta.state.name == *name => {",
        to: "Ok((delta, unread)) => {",
    },
    Mutant {
        what: "nothing is compared after connecting",
        file: LINK,
        from: "self.add(Target::Store, Covers { first: self.saved.next(), at: u64::MAX });",
        to: "",
    },
    Mutant {
        what: "visits are forgotten when the connection breaks",
        file: LINK,
        from: "self.add(target, covers);\n        }\n    }\n\n    fn take(",
        to: "let _ = (target, covers);\n        }\n    }\n\n    fn take(",
    },
    Mutant {
        what: "a change during a visit counts as seen",
        file: LINK,
        from: "let entry = self.pending.entry(target.clone()).or_insert(covers);",
        to: "if self.running.contains_key(&target) { return; }
            let entry = self.pending.entry(target.clone()).or_insert(covers);",
    },
    Mutant {
        what: "what is set aside is never tried again",
        file: LINK,
        from: "let due: Vec<Target> = self.due(now);",
        to: "let due: Vec<Target> = { self.due(now); Vec::new() };",
    },
    Mutant {
        what: "in sync while visits run",
        file: LINK,
        from: "State::Live if !idle || self.taken < self.tail => Phase::Replaying,",
        to: "State::Live if { let _ = idle; self.taken < self.tail } => Phase::Replaying,",
    },
    Mutant {
        what: "entries count as durable before they are",
        file: "agent/src/log/writer.rs",
        from: "self.shared.show(entries);\n        file.sync()?;",
        to: "self.shared.show(entries);",
    },
    Mutant {
        what: "a cursor is kept beyond what is durable in the log",
        file: "agent/src/cursor.rs",
        from: "let seq = acked.upto().min(tail);",
        to: "let seq = acked.upto().max(LogSeq(0).min(tail));",
    },
    Mutant {
        what: "an older epoch is let in",
        file: "replica/src/fence.rs",
        from: "if epoch < node.epoch {",
        to: "if false {",
    },
    Mutant {
        what: "a session does not end when a newer epoch begins",
        file: "replica/src/session.rs",
        from: "known = context.fence.overtakes(hello.epoch) => {",
        to: "known = context.fence.overtakes(mailtwin_logic::ids::Epoch(u64::MAX - 1)) => {",
    },
    Mutant {
        what: "acked but not applied",
        file: "replica/src/apply.rs",
        from: "let result = committer.apply(batch, live).await.ok_or(Broken)?;",
        to: "let result = { let _ = (committer, live); Ok(batch.target) };",
    },
    Mutant {
        what: "the replica's own messages are expunged",
        file: PLAN,
        from: "if record.replicated && record.uid < forgotten {",
        to: "if record.uid < forgotten {",
    },
    Mutant {
        what: "mailboxes with the replica's own messages are deleted",
        file: PLAN,
        from: "if extra.foreign > 0 || doubtful && extra.head.messages > 0 {",
        to: "if doubtful && false {",
    },
    Mutant {
        what: "what was equal once is equal for ever",
        file: VISIT,
        from: "if known.as_ref().is_some_and(|known| self.is_equal(known, state)) {",
        to: "if known.is_some() {",
    },
    Mutant {
        what: "called equal without a look at what the replica says",
        file: VISIT,
        from: "if head == target {",
        to: "if true {",
    },
    Mutant {
        what: "a visit that failed counts as done",
        file: "agent/src/link/mod.rs",
        from: "Err(VisitError::Target(trouble) | VisitError::Message(_, trouble)) => {",
        to: "Err(VisitError::Target(_)) if true => Outcome::Done(Vec::new()),
            Err(VisitError::Target(trouble) | VisitError::Message(_, trouble)) => {",
    },
    Mutant {
        what: "expunges are not held by the brake",
        file: "agent/src/visit/brake.rs",
        from: "plan.changes.retain(|change| !is_expunge(change));",
        to: "",
    },
    Mutant {
        what: "deletes are not held by the brake",
        file: "agent/src/visit/brake.rs",
        from: "let held = plan::hold(plan);",
        to: "let held: Vec<MailboxName> = Vec::new();",
    },
    Mutant {
        what: "what the brake holds is forgotten when the agent ends",
        file: "agent/src/brake.rs",
        from: "brake = Brake::new(limits, engaged.collect(), released.collect());",
        to: "let _ = (engaged, released);",
    },
    Mutant {
        what: "a message that is left out is not told of",
        file: VISIT,
        from: "let left = self.left_unequal(account, &delta, &plan, (head, &found.bad)).await?;",
        to: "if !found.bad.is_empty() { return Ok(Some(Visited::default())); }
        let left = self.left_unequal(account, &delta, &plan, (head, &found.bad)).await?;",
    },
    Mutant {
        what: "messages that a restored master has forgotten are expunged",
        file: PLAN,
        from: "if record.replicated && record.uid < forgotten {",
        to: "if record.replicated {",
    },
    Mutant {
        what: "mailboxes that a restored master has forgotten are deleted",
        file: PLAN,
        from: "if extra.foreign > 0 || doubtful && extra.head.messages > 0 {",
        to: "if extra.foreign > 0 || doubtful && false {",
    },
    Mutant {
        what: "a message whose UID is taken goes under another one",
        file: PLAN,
        from: "clashes.push(record.uid);",
        to: "changes.push(Change::Add(Record { uid: target.uid_next, ..record.clone() }));",
    },
    Mutant {
        what: "one broken mailbox makes the whole connection start over",
        file: "agent/src/link/mod.rs",
        from: "Err(VisitError::Target(trouble) | VisitError::Message(_, trouble)) => {",
        to: "Err(VisitError::Target(trouble)) if true => return self.lose(&trouble.detail),
            Err(VisitError::Target(trouble) | VisitError::Message(_, trouble)) => {",
    },
    Mutant {
        what: "what is set aside is released for its name's sake",
        file: LINK,
        from: "dirty.extend(account.cloned().map(Target::Account));",
        to: "let _ = account;",
    },
    Mutant {
        what: "a stale plan is carried out again and again without comparing",
        file: VISIT,
        from: "self.held.forget(account, state.id);\n        let held_back",
        to: "let held_back",
    },
    Mutant {
        what: "a merge gives out UIDs that the returning node gave out",
        file: CARRY,
        from: "while !rest.is_empty() || head.uid_next < above {",
        to: "while !rest.is_empty() {",
    },
    Mutant {
        what: "a replica that was behind is believed to know the last UID",
        file: CARRY,
        from: "let margin = if journal.is_old_master() { 0 } else { UID_MARGIN };",
        to: "let margin = if journal.is_old_master() { 0 } else { UID_MARGIN / 9999 };",
    },
    Mutant {
        what: "a message that is copied back keeps its UID",
        file: CARRY,
        from: "let (uid, new) = (record.uid, next);",
        to: "let (uid, new) = (record.uid, if theirs { record.uid } else { next });",
    },
    Mutant {
        what: "what the new master's clients deleted is copied back",
        file: RECONCILE,
        from: "match (mine.get(&id), based.get(&id)) {",
        to: "match (mine.get(&id), based.get(&id).filter(|_| says)) {",
    },
    Mutant {
        what: "what the old master's clients expunged is no decision",
        file: RECONCILE,
        from: "gone.into_iter().filter(|&uid| uid < next)",
        to: "gone.into_iter().filter(|&uid| uid < next).take(0)",
    },
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let copy = Workspace::copy()?;
    let (mutants, test): (_, &dyn Fn(u64) -> Result<Option<String>>) = if options.power_cuts {
        (syncs::SYNCS, &|_| copy.cut_power())
    } else {
        (MUTANTS, &|seeds| copy.test(seeds))
    };
    if let Some(caught) = test(2000)? {
        bail!("it fails without any bug: {caught}");
    }
    let (mut missed, mut tried) = (Vec::new(), 0);
    talk("| deliberate bug | caught by |\n|---|---|");
    for mutant in mutants {
        if options.only.as_ref().is_some_and(|only| !mutant.what.contains(only)) {
            continue;
        }
        tried += 1;
        let caught = copy.with(mutant, || test(options.seeds))??;
        talk(&format!("| {} | {} |", mutant.what, caught.as_deref().unwrap_or("**nothing**")));
        if caught.is_none() {
            missed.push(mutant.what);
        }
    }
    ensure!(
        missed.is_empty(),
        "{} of {tried} were not caught: {}",
        missed.len(),
        missed.join("; ")
    );
    Ok(())
}

/// A copy of the workspace to be damaged.
struct Workspace(PathBuf);

impl Workspace {
    fn copy() -> Result<Self> {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let copy = ours.join("target/mutants");
        let listed = Command::new("git").arg("ls-files").current_dir(&ours).output();
        let listed = listed.context("list the workspace's files")?;
        let listed = String::from_utf8(listed.stdout)?;
        remove_all_but(&copy, &listed.lines().map(|file| copy.join(file)).collect())?;
        for file in listed.lines() {
            let (from, to) = (ours.join(file), copy.join(file));
            let Ok(content) = fs::read(&from) else { continue };
            // What has not changed keeps its date, so that it is not built again.
            if fs::read(&to).is_ok_and(|held| held == content) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&from, &to).with_context(|| format!("copy {file}"))?;
        }
        Ok(Self(copy))
    }

    /// Puts a bug in, and takes it out again.
    fn with<T>(&self, mutant: &Mutant, test: impl FnOnce() -> T) -> Result<T> {
        let path = self.0.join(mutant.file);
        let whole = fs::read_to_string(&path).with_context(|| format!("read {}", mutant.file))?;
        let places = whole.matches(mutant.from).count();
        ensure!(places == 1, "{}: {} has {places} places for it", mutant.what, mutant.file);
        overwrite(&path, &whole.replace(mutant.from, mutant.to))?;
        let tested = test();
        overwrite(&path, &whole)?;
        Ok(tested)
    }

    /// Says what failed, if anything did.
    fn test(&self, seeds: u64) -> Result<Option<String>> {
        let mut command = Command::new("cargo");
        command.args(["test", "--release", "--no-fail-fast", "-p", "mailtwin-simulation"]);
        command.current_dir(&self.0).env("SEEDS", seeds.to_string()).env("RUST_BACKTRACE", "0");
        let output = command.env("CARGO_TARGET_DIR", self.0.join("target")).output()?;
        if output.status.success() {
            return Ok(None);
        }
        let said = said(&output);
        let seed = said.lines().find_map(|line| line.trim_start().strip_prefix("SEED="));
        let what = seed.and_then(|rest| Some(rest.split_once(" SEEDS=1 repeats it: ")?.1));
        let seed = what.map(|what| what.chars().take(60).collect::<String>());
        let mut named = failed(&said);
        named.retain(|name| !name.starts_with("no_story"));
        let all: Vec<String> =
            seed.into_iter().chain(named.into_iter().map(str::to_owned)).collect();
        ensure!(!all.is_empty(), "it does not build, or does not run:\n{said}");
        Ok(Some(all.join(", ")))
    }

    /// Says which pictures of power cuts showed something, if any did.
    fn cut_power(&self) -> Result<Option<String>> {
        let mut command = Command::new("cargo");
        command.args(["test", "--release", "--no-fail-fast", "-p", "mailtwin-tests"]);
        command.args(["--test", "crash", "--test", "crash_log", "--", "_on_"]);
        command.current_dir(&self.0).env("RUST_BACKTRACE", "0");
        let output = command.env("CARGO_TARGET_DIR", self.0.join("target")).output()?;
        if output.status.success() {
            return Ok(None);
        }
        let said = said(&output);
        let named = failed(&said);
        ensure!(!named.is_empty(), "it does not build, or does not run:\n{said}");
        Ok(Some(named.join(", ")))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Tests that failed.
fn failed(said: &str) -> Vec<&str> {
    said.lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect()
}

/// Removes what an earlier copy had and the workspace has no more.
fn remove_all_but(dir: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            // Not what was built.
            if entry.file_name() != "target" {
                remove_all_but(&path, kept)?;
            }
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a scratch copy need not be durable")]
fn overwrite(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_still_has_its_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for Mutant { what, file, from, .. } in MUTANTS.iter().chain(syncs::SYNCS) {
            let whole = fs::read_to_string(root.join(file)).unwrap();
            assert_eq!(whole.matches(from).count(), 1, "{what}: {from:?} in {file}");
        }
    }
}

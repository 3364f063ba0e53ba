//! What holds for every file of the project.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use mailtwin_host::lines::LogLine;

const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files that git has or would take, with their text; those that are no text are left out.
fn files() -> anyhow::Result<Vec<(String, String)>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("run git ls-files")?;
    ensure!(listed.status.success(), "git: {}", String::from_utf8_lossy(&listed.stderr));
    let mut files = Vec::new();
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        // Sample mail is as it came.
        if Path::new(name).extension().is_some_and(|extension| extension == "eml") {
            continue;
        }
        if let Ok(text) = fs::read_to_string(root().join(name)) {
            files.push((name.to_owned(), text));
        }
    }
    ensure!(files.len() > 50, "git lists the project's files");
    Ok(files)
}

fn is_rust(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

fn expect_none(what: &str, found: &[String]) -> anyhow::Result<()> {
    ensure!(found.is_empty(), "{what}:\n{}", found.join("\n"));
    Ok(())
}

#[test]
fn rust_files_say_what_they_are_for_and_stay_short() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for (name, text) in files()?.iter().filter(|(name, _)| is_rust(name)) {
        if !text.starts_with("//! ") {
            found.push(format!("{name}: the first line is not //!"));
        }
        let lines = text.lines().count();
        if lines >= LINES_MAX {
            found.push(format!("{name}: {lines} lines"));
        }
    }
    expect_none("Rust files", &found)
}

#[test]
fn nothing_is_left_for_later() -> anyhow::Result<()> {
    // Put together here, so that this file does not find itself.
    let words = ["TO", "FIX", "XX"].iter().zip(["DO", "ME", "X"]);
    let mut words: Vec<String> = words.map(|(a, b)| format!("{a}{b}")).collect();
    words.push(format!("#[{}", "ignore"));
    words.push(format!("#[{}(", "allow"));
    let mut found = Vec::new();
    for (name, text) in files()?.iter().filter(|(name, _)| is_rust(name)) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                found.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    expect_none("leftovers", &found)
}

#[test]
fn no_file_names_the_machine_it_was_written_on() -> anyhow::Result<()> {
    let places = ["/work", "/root"].map(|place| format!("{place}{}", "/"));
    let mut found = Vec::new();
    for (name, text) in files()? {
        for (number, line) in text.lines().enumerate() {
            if let Some(place) = places.iter().find(|place| names_place(line, place)) {
                found.push(format!("{name}:{}: {place}", number + 1));
            }
        }
    }
    expect_none("paths of one machine", &found)
}

/// Whether `line` has `place` where a path would begin.
fn names_place(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line.get(..at).and_then(|head| head.chars().next_back());
        before.is_none_or(|c| !c.is_alphanumeric() && !"~.}_-".contains(c))
    })
}

#[test]
fn crates_use_each_other_one_way() -> anyhow::Result<()> {
    // A crate, and those of ours that it may not see.
    let walls = [
        ("common/logic", &["disk", "store", "host", "agent", "replica"][..]),
        ("common/disk", &["logic", "store", "host", "agent", "replica"]),
        ("common/cyrus", &["logic", "store", "host", "agent", "replica"]),
        ("common/store", &["host", "agent", "replica"]),
        ("common/host", &["store", "agent", "replica"]),
        ("agent", &["replica"]),
        ("replica", &["agent"]),
    ];
    let mut found = Vec::new();
    for (member, others) in walls {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml"))?;
        let (_, dependencies) = manifest.split_once("[dependencies]").context("dependencies")?;
        for other in others {
            if dependencies.contains(&format!("mailtwin-{other}")) {
                found.push(format!("{member} uses mailtwin-{other}"));
            }
        }
        let blocking =
            ["common/logic", "common/disk", "common/cyrus", "common/store"].contains(&member);
        if blocking && dependencies.contains("tokio") {
            found.push(format!("{member} uses tokio"));
        }
    }
    expect_none("dependencies", &found)
}

/// Every page, by its name.
fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let is_page =
        |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "md");
    Ok(files()?.into_iter().filter(|(name, _)| is_page(name)).collect())
}

#[test]
fn links_of_pages_lead_somewhere() -> anyhow::Result<()> {
    let pages = pages()?;
    let mut found = Vec::new();
    for (name, text) in &pages {
        let dir = root().join(name);
        let dir = dir.parent().context("a page lies in a folder")?;
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.contains("://") {
                continue;
            }
            let page = if path.is_empty() { root().join(name) } else { dir.join(path) };
            let is_there = page.exists();
            let has_anchor = anchor.is_empty()
                || fs::read_to_string(&page).is_ok_and(|text| anchors(&text).any(|a| a == anchor));
            if !(is_there && has_anchor) {
                found.push(format!("{name}: {target}"));
            }
        }
    }
    expect_none("links", &found)
}

/// What the headings of a page are called in links.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[test]
fn guarantees_name_tests_that_exist() -> anyhow::Result<()> {
    let page = fs::read_to_string(root().join("docs/guarantees.md"))?;
    let mut sources = String::new();
    for (name, text) in files()? {
        if name.starts_with("tests/tests/") {
            sources.push_str(&text);
        }
    }
    let code = page.split('`').skip(1).step_by(2);
    let is_test = |word: &&str| {
        let name = word.trim_end_matches('…');
        name.matches('_').count() > 1 && name.chars().all(|c| c.is_lowercase() || c == '_')
    };
    let named: Vec<&str> = code.filter(is_test).collect();
    ensure!(named.len() > 20, "{named:?}");
    let missing = |name: &&&str| match name.strip_suffix('…') {
        Some(start) => !sources.contains(&format!("fn {start}")),
        None => !sources.contains(&format!("fn {name}()")),
    };
    let found: Vec<String> = named.iter().filter(missing).map(ToString::to_string).collect();
    expect_none("tests that do not exist", &found)
}

/// What follows each `tracing::warn!(` and `tracing::error!(` of `text`, up to the end of its first field.
fn first_fields(text: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    // Put together here, so that this file does not find itself.
    for level in ["warn", "error"] {
        for rest in text.split(&format!("{level}!(")).skip(1) {
            let rest = rest.trim_start();
            fields.push(rest.split([',', '\n']).next().unwrap_or(rest));
        }
    }
    fields
}

#[test]
fn every_warning_and_error_has_a_code_that_is_explained() -> anyhow::Result<()> {
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    let is_ours =
        |name: &str| is_rust(name) && !name.starts_with("tests/") && !name.ends_with("/tests.rs");
    for (name, text) in files()?.iter().filter(|(name, _)| is_ours(name)) {
        for field in first_fields(text) {
            let code = field.strip_prefix("code = ").unwrap_or_default();
            match code.strip_prefix('"').and_then(|code| code.strip_suffix('"')) {
                Some(code) if LogLine::of_code(code).is_some() => {
                    used.insert(code.to_owned());
                }
                // A code of another list, which has its own explanations.
                None if code == "key.as_str()" => {}
                Some(_) | None => found.push(format!("{name}: {field}")),
            }
        }
    }
    expect_none("log lines without a known code as their first field", &found)?;
    let unused = LogLine::ALL.iter().map(|line| line.as_str()).filter(|code| !used.contains(*code));
    let unused: Vec<String> = unused.map(str::to_owned).collect();
    expect_none("codes of log lines that nothing logs", &unused)
}

/// Whose mail it is, is logged where something is wrong, and not in passing.
#[test]
fn no_line_of_level_info_names_an_account() -> anyhow::Result<()> {
    let is_ours =
        |name: &str| is_rust(name) && !name.starts_with("tests/") && !name.ends_with("/tests.rs");
    let (mut found, mut lines) = (Vec::new(), 0);
    for (name, text) in files()?.iter().filter(|(name, _)| is_ours(name)) {
        for rest in text.split(&format!("{}!(", "info")).skip(1) {
            let call = rest.split_once(");").map_or(rest, |(call, _)| call);
            let words: Vec<&str> = call.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            lines += 1;
            if ["account", "mailbox", "subject"].iter().any(|word| words.contains(word)) {
                found.push(format!("{name}: {}", call.lines().next().unwrap_or_default()));
            }
        }
    }
    ensure!(lines > 30, "{lines} lines are found");
    expect_none("lines of level INFO that name an account", &found)
}

//! Every bad file gives exactly the output beside it; the file that is shipped is a good one.

use std::io::Write as _;

use super::*;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn parse(text: &str) -> Result<Config, Vec<ConfigProblem>> {
    Config::parse(Path::new("mailtwin.toml"), text)
}

#[test]
fn bad_files_give_the_output_beside_them() {
    let dir = repository("tests/fixtures/config/bad");
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    names.sort();
    assert!(names.len() >= 10, "the fixtures are gone");
    for path in names {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = Path::new(path.file_name().unwrap());
        let problems = Config::parse(name, &text).expect_err(&path.display().to_string());
        let want = std::fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        assert_eq!(lines(&problems) + "\n", want, "{}", path.display());
    }
}

#[test]
fn the_shipped_file_is_a_good_one() {
    let config = Config::load(&repository("ops/packaging/mailtwin.toml")).unwrap();
    assert_eq!(config.node.name, "mx1");
    assert_eq!(config.store.engine, Engine::Maildir);
    assert_eq!(config.replica.graveyard, Duration::from_hours(7 * 24));
    assert_eq!(config.peers.len(), 1);
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "config_version = 1\nnode.name = \"a\"\nstore.root = \"/mail\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.node.state_dir, Path::new("/var/lib/mailtwin"));
    assert_eq!(config.node.log, "info");
    assert_eq!(config.log.bound, 1 << 30);
    assert_eq!(config.scan.interval, Duration::from_hours(6));
    assert_eq!(config.replica.listen.to_string(), "[::]:4710");
    assert_eq!(config.metrics.agent.unwrap().to_string(), "127.0.0.1:9471");
    assert_eq!(
        (config.brake.messages, config.brake.mailboxes, config.brake.accounts),
        (250, 10, 5)
    );
    assert_eq!((config.brake.share, config.brake.within), (30, Duration::from_hours(1)));
    assert!(config.peers.is_empty() && !config.store.read_only);
}

#[test]
fn metrics_can_be_off_and_memory_needs_no_root() {
    let text = "config_version = 1\n[node]\nname = \"a\"\n[store]\nengine = \"memory\"\n\
                [metrics]\nagent = \"off\"\n";
    let config = parse(text).unwrap();
    assert_eq!((config.metrics.agent, config.store.root.as_str()), (None, ""));
}

#[test]
fn a_reload_can_say_what_changed() {
    let base = "config_version = 1\nnode.name = \"a\"\nstore.root = \"/mail\"\n";
    let (one, two) = (
        parse(&format!("{base}[[peer]]\nname = \"b\"\naddress = \"b:1\"\n")).unwrap(),
        parse(&format!("{base}log.bound = \"2GiB\"\n[[peer]]\nname = \"c\"\naddress = \"c:1\"\n"))
            .unwrap(),
    );
    assert_eq!(one.changed_keys(&two), ["log.bound", "peer b", "peer c"]);
    assert!(one.changed_keys(&one).is_empty());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/mailtwin.toml")).unwrap_err();
    assert_eq!(error.to_string(), "read /nonexistent/mailtwin.toml");
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(b"a = 1\n# \xff\n").unwrap();
    let error = Config::load(file.path()).unwrap_err().to_string();
    assert!(error.ends_with(":2: syntax: the text is not UTF-8"), "{error}");
}

/// Keys, each with its default if it has one.
type Rows = Vec<(String, Option<String>)>;

/// The reference: a section's heading, and of each row key and default.
fn documented() -> Vec<(String, Rows)> {
    let text = std::fs::read_to_string(repository("docs/configuration.md")).unwrap();
    let mut sections: Vec<(String, Rows)> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let name = heading.trim_matches(['[', ']']);
            let name = if name == "Top level" { "" } else { name };
            sections.push((name.to_owned(), Vec::new()));
        }
        let mut cells = line.split(" | ");
        let key = cells.next().and_then(|cell| cell.strip_prefix("| `")?.strip_suffix('`'));
        let (Some(key), Some(default)) = (key, cells.next()) else { continue };
        let default = default.strip_prefix('`').and_then(|default| default.strip_suffix('`'));
        let (_, rows) = sections.last_mut().unwrap();
        rows.push((key.to_owned(), default.map(str::to_owned)));
    }
    sections
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let sections = documented();
    for (section, rows) in &sections {
        let head = match section.as_str() {
            "" => String::new(),
            "peer" => "[[peer]]\n".to_owned(),
            name => format!("[{name}]\n"),
        };
        let problems = parse(&format!("{head}no_such_key = 1\n")).unwrap_err();
        let known =
            problems.iter().find_map(|it| it.problem.strip_prefix("unknown key; known here: "));
        let mut known: Vec<&str> = known.unwrap().split(", ").collect();
        if section.is_empty() {
            // The other keys of the whole file are its sections.
            known.retain(|name| !sections.iter().any(|(section, _)| section == name));
        }
        let mut rows: Vec<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
        known.sort_unstable();
        rows.sort_unstable();
        assert_eq!(known, rows, "[{section}]");
    }
    assert_eq!(sections.len(), 14);
}

#[test]
fn the_defaults_of_the_reference_are_those_of_the_program() {
    let needed = [
        ("node", "name = \"a\"\n"),
        ("store", "root = \"/mail/{user}\"\n"),
        ("canary", "account = \"canary\"\nlmtp = \"127.0.0.1:24\"\n"),
    ];
    let (mut short, mut long) = ("config_version = 1\n".to_owned(), String::new());
    for (section, rows) in documented() {
        let needed = needed.iter().find(|(name, _)| *name == section).map_or("", |(_, line)| *line);
        let head = if section.is_empty() || section == "peer" {
            continue;
        } else {
            format!("[{section}]\n{needed}")
        };
        long += &head;
        if !needed.is_empty() {
            short += &head;
        }
        for (key, default) in rows {
            if let Some(default) = default {
                long += &[key.as_str(), " = ", &default, "\n"].concat();
            }
        }
    }
    let long = format!("config_version = 1\n{long}");
    assert_eq!(parse(&short).unwrap(), parse(&long).unwrap(), "{long}");
}

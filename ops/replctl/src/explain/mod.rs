//! `replctl explain`: what each code means that logs, status, checks and quarantine may show, and what
//! to do about it. The texts stand here and nowhere else; the lists are made by the macro `topics`, which
//! does not compile unless every variant of an enumeration has its entry.

/// Topics of one enumeration.
///
/// `Type, group, page, name; Variant => meaning, what to do;` where `name` gives a variant's code.
/// The list is also matched against, so that the compiler misses a variant that is not in it.
macro_rules! topics {
    ($type:ident, $group:literal, $page:literal, $name:expr;
     $($variant:ident $(($sample:expr))? => $means:literal, $todo:literal;)+) => {{
        let _every_one = |it: &$type| match it { $($type::$variant { .. } => ()),+ };
        vec![$(Topic {
            code: $name($type::$variant $(($sample))?).to_string(),
            group: $group,
            means: $means,
            todo: $todo,
            page: $page,
        }),+]
    }};
}

mod lines;
mod mail;
mod node;
mod roles;

use serde::Serialize;
use serde_json::json;

use crate::{args, exit, output::Output};

/// One code.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Topic {
    /// As it is shown.
    pub(crate) code: String,
    /// Where it is shown.
    pub(crate) group: &'static str,
    /// What it means.
    pub(crate) means: &'static str,
    /// What to do; empty if there is nothing to do.
    #[serde(rename = "do")]
    pub(crate) todo: &'static str,
    /// Where to read on, below the documentation's folder.
    pub(crate) page: &'static str,
}

/// Every code, by group. One code may stand in several.
pub(crate) fn all() -> Vec<Topic> {
    [lines::topics(), mail::topics(), roles::topics(), node::topics()].concat()
}

/// Runs the verb.
pub(crate) fn run(args: &args::Explain, output: &Output) -> anyhow::Result<u8> {
    let Some(code) = &args.code else { return list(output) };
    let wanted = code.trim_matches(|c| "[]`".contains(c)).to_lowercase();
    let found: Vec<Topic> = all().into_iter().filter(|topic| topic.code == wanted).collect();
    if found.is_empty() {
        let near: Vec<String> = all()
            .into_iter()
            .map(|topic| topic.code)
            .filter(|code| code.contains(&wanted))
            .collect();
        let near = if near.is_empty() { String::new() } else { format!(": {}?", near.join(", ")) };
        Output::note(&format!("no code is {wanted:?}{near}; `replctl explain` lists them all"));
        return Ok(exit::USAGE);
    }
    if output.is_json() {
        Output::json(&json!({ "topics": found }))?;
        return Ok(0);
    }
    for topic in found {
        output.say(&format!("{} ({})", topic.code, topic.group))?;
        output.say(&format!("  {}", topic.means))?;
        if !topic.todo.is_empty() {
            output.say(&format!("  What to do: {}", topic.todo))?;
        }
        output.say(&format!("  Read on: docs/{}", topic.page))?;
    }
    Ok(0)
}

fn list(output: &Output) -> anyhow::Result<u8> {
    if output.is_json() {
        Output::json(&json!({ "topics": all() }))?;
        return Ok(0);
    }
    let mut group = "";
    for topic in all() {
        if topic.group != group {
            group = topic.group;
            output.say(&format!("{group}:"))?;
        }
        output.say(&format!("  {:<24}{}", topic.code, topic.means))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    #[test]
    fn every_topic_is_whole_and_its_page_is_there() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let mut seen = BTreeSet::new();
        for topic in all() {
            assert!(seen.insert((topic.group, topic.code.clone())), "{topic:?} stands twice");
            assert!(topic.means.ends_with('.'), "{topic:?} is no sentence");
            assert!(topic.todo.is_empty() || topic.todo.ends_with('.'), "{topic:?}");
            let (page, anchor) = topic.page.split_once('#').unwrap_or((topic.page, ""));
            let text = std::fs::read_to_string(docs.join(page)).expect(page);
            let is_heading = |line: &str| line.starts_with('#') && slug(line) == anchor;
            assert!(anchor.is_empty() || text.lines().any(is_heading), "{topic:?}");
        }
        assert!(seen.len() > 100, "{}", seen.len());
    }

    /// A heading's anchor, as Markdown viewers make it.
    fn slug(heading: &str) -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    }
}

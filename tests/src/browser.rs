//! A real browser without a window: what a page has in it once its script has run, and a picture.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::{lab::Lab, process};

/// Debian's package `chromium`.
const CHROMIUM: &str = "/usr/bin/chromium";
/// How long a page's script may go on, in milliseconds of the page's own time.
const BUDGET_MS: u32 = 4_000;

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Whether the user prefers dark colours.
    pub dark: bool,
}

/// The document that `url` has become, as HTML.
pub fn document(lab: &Lab, url: &str) -> anyhow::Result<String> {
    let view = View { size: (1000, 900), dark: false };
    let output = run(lab, view, &["--dump-dom".into()], url)?;
    ensure!(output.contains("</html>"), "{url}: no document: {output}");
    Ok(output)
}

/// A picture of `url`, in the lab's folder.
pub fn picture(lab: &Lab, url: &str, name: &str, view: View) -> anyhow::Result<PathBuf> {
    let file = lab.dir().join(name);
    let mut word = OsString::from("--screenshot=");
    word.push(&file);
    run(lab, view, &[word], url)?;
    ensure!(file.is_file(), "{url}: no picture");
    Ok(file)
}

fn run(lab: &Lab, view: View, words: &[OsString], url: &str) -> anyhow::Result<String> {
    ensure!(Path::new(CHROMIUM).exists(), "{CHROMIUM} is missing; tests/run installs it");
    let (width, height) = view.size;
    let mut profile = OsString::from("--user-data-dir=");
    profile.push(lab.dir().join("browser"));
    let mut command: Vec<OsString> = ["timeout", "60", CHROMIUM].map(OsString::from).into();
    command.extend(
        ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
            .map(OsString::from),
    );
    command.push(format!("--window-size={width},{height}").into());
    command.push(format!("--virtual-time-budget={BUDGET_MS}").into());
    command.push(profile);
    if view.dark {
        command.push("--blink-settings=preferredColorScheme=0".into());
    }
    command.extend(words.iter().cloned());
    command.push(url.into());
    let command: Vec<_> = command.iter().map(OsString::as_os_str).collect();
    let output = process::run(lab, &command, false).context("run chromium")?.expect(0)?;
    Ok(output.stdout)
}

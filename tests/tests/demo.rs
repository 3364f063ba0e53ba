//! The command that shows everything at work, as the README has it.

use std::ffi::OsStr;

use anyhow::ensure;
use mailtwin_tests::{daemon, lab::Lab};

#[test]
fn the_demo_ends_by_itself_with_equal_trees() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let dir = lab.mail_dir("demo")?;
        let words = ["demo", "--messages", "60", "--dir"].map(OsStr::new);
        let words: Vec<&OsStr> = words.into_iter().chain([dir.as_os_str()]).collect();
        let output = daemon::replctl(lab, &words, true)?.expect(0)?;
        let said = format!("{}{}", output.stdout, output.stderr);
        for word in ["delivered", "on replica", "equal"] {
            ensure!(said.to_lowercase().contains(word), "{word} is in {said}");
        }
        Ok(())
    })
}

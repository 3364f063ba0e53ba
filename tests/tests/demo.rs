//! The command that shows everything at work, as the README has it.

use std::{ffi::OsStr, thread};

use anyhow::ensure;
use mailtwin_tests::{corpus, daemon, files, lab::Lab};

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

#[test]
fn the_demo_fails_when_the_trees_differ() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let dir = lab.mail_dir("demo")?;
        let words = ["demo", "--messages", "60", "--dir"].map(OsStr::new);
        let words: Vec<&OsStr> = words.into_iter().chain([dir.as_os_str()]).collect();
        let output = thread::scope(|scope| {
            let demo = scope.spawn(|| daemon::replctl(lab, &words, true));
            // Somebody puts a message into the replica's tree, which is not replication's to remove.
            let stray = lab.wait("the replica has a mailbox", || {
                let there = files::messages(&dir.join("replica/mail")).unwrap_or_default();
                let first =
                    there.first().map(|path| path.with_file_name("1700000000.stray.host:2,"));
                Ok(first.ok_or_else(|| "no message yet".to_owned()))
            })?;
            files::write_mail(&stray, corpus::short("stray"))?;
            demo.join().map_err(|_| anyhow::anyhow!("the demo's thread panicked"))?
        })?;
        ensure!(output.code == Some(1), "{output:?}");
        ensure!(output.stdout.contains("only on the replica"), "{output:?}");
        Ok(())
    })
}

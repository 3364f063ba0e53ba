//! Cyruses that take no password in the clear: what is said to them is encrypted, and only to them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{corpus, cyrus::Cyrus, daemon::Node, files, lab::Lab, oracle::Account};

/// Makes a certificate and its key; returns where both lie.
fn certificate(lab: &Lab, name: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
    let made = rcgen::generate_simple_self_signed(["cyrus.test".to_owned()])?;
    let dir = lab.mail_dir(name)?;
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    files::write(&certificate, made.cert.pem())?;
    files::write(&key, made.signing_key.serialize_pem())?;
    Ok((certificate, key))
}

/// A Cyrus whose strict ports take no password in the clear, and its certificate.
fn strict(lab: &Lab, name: &str) -> anyhow::Result<(Cyrus, PathBuf)> {
    let (certificate, key) = certificate(lab, &format!("{name}-tls"))?;
    let extra = format!(
        "tls_server_cert: {}\ntls_server_key: {}\nstrict_allowplaintext: no\n\
         csync_allowplaintext: no",
        certificate.display(),
        key.display(),
    );
    Ok((Cyrus::with_extra(lab, name, &extra)?, certificate))
}

#[test]
fn what_is_said_is_encrypted_and_only_to_the_right_server() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, ours) = strict(lab, "a")?;
        let (replica, theirs) = strict(lab, "b")?;
        master.create_user("ann")?;
        replica.set_password("ann")?;
        master.deliver("ann", &corpus::short("before"))?;
        let stores = [("a", master.strict_config(&ours)), ("b", replica.strict_config(&theirs))];
        let nodes = Node::start_beside(lab, &stores)?;
        master.deliver("ann", &corpus::short("after"))?;
        let whole = ["before", "after"];
        lab.wait("both messages are on the replica", || {
            let there = Account::read(&replica, "ann");
            let there = there.map(|there| there.serials()).unwrap_or_default();
            let equal = whole.iter().all(|serial| there.contains_key(*serial));
            Ok(if equal { Ok(()) } else { Err(format!("{there:?}")) })
        })?;
        nodes[0].replctl(lab, &["check", "--level", "deep"])?.expect(0)?;
        let told = nodes[0].replctl(lab, &["doctor"])?.stdout;
        ensure!(told.matches("lets us in").count() == 2, "{told}");

        // Without a certificate the server lets nobody in, and what to do is said.
        let config = nodes[0].config();
        let text = fs::read_to_string(&config)?;
        let line = text.lines().find(|line| line.starts_with("certificate"));
        let line = line.context("the key in the configuration")?;
        files::write(&config, text.replace(line, ""))?;
        let told = nodes[0].replctl(lab, &["doctor"])?.stdout;
        ensure!(told.matches("needs `certificate`").count() == 2, "{told}");

        // A server with another certificate is told nothing.
        let (other, _) = certificate(lab, "other")?;
        files::write(
            &config,
            text.replace(line, &format!("certificate = \"{}\"", other.display())),
        )?;
        let told = nodes[0].replctl(lab, &["doctor"])?.stdout;
        ensure!(told.matches("the server has another certificate").count() == 2, "{told}");

        // Nor is one without TLS.
        let plain = Cyrus::start(lab, "c")?;
        let nodes = Node::beside(lab, &[("c", plain.strict_config(&other))])?;
        let told = nodes[0].replctl(lab, &["doctor"])?.stdout;
        ensure!(told.matches("set tls_server_cert").count() == 2, "{told}");
        Ok(())
    })
}

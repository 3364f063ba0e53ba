//! Builds that leave out one wait for the disk each: pictures of a power cut must show it.

use super::Mutant;

const APPLY: &str = "common/store/src/maildir/apply.rs";
const REPLACE: &str = "common/disk/src/replace.rs";
const WRITER: &str = "agent/src/log/writer.rs";

pub(super) const SYNCS: &[Mutant] = &[
    Mutant {
        what: "messages are not synced before they get their names",
        file: APPLY,
        from: "    if paths.len() > FEW {\n",
        to: "    if !paths.is_empty() {\n        return Ok(());\n    }\n    if paths.len() > FEW {\n",
    },
    Mutant {
        what: "the UID list is not synced",
        file: APPLY,
        from: "list.sync_data().map_err(during(\"sync\", &one.dir.at(uidlist::NAME)))?;",
        to: "drop(list);",
    },
    Mutant {
        what: "the directory of messages is not synced",
        file: APPLY,
        from: "            sync_sub(one.dir, b\"cur\")?;\n",
        to: "",
    },
    Mutant {
        what: "a group of mailboxes is not synced",
        file: APPLY,
        from: "            synced = disk.sync().map_err(identity::refused);\n",
        to: "            let _ = disk;\n            synced = Ok(());\n",
    },
    Mutant {
        what: "a mailbox that is built is not synced before it gets its place",
        file: APPLY,
        from: "if let Err(error) = disk.sync().map_err(identity::refused) {\n            for (at, _) in &built",
        to: "if let Err::<(), StoreError>(error) = Ok(()) {\n            for (at, _) in &built",
    },
    Mutant {
        what: "the directory above a mailbox that is built is not synced",
        file: APPLY,
        from: "above.values().try_for_each(Dir::sync)",
        to: "Ok(())",
    },
    Mutant {
        what: "the sync log is not synced",
        file: WRITER,
        from: "file.sync()?;\n        Ok(file.octets())",
        to: "Ok(file.octets())",
    },
    Mutant {
        what: "a small file is not synced before it replaces another",
        file: REPLACE,
        from: "file.sync_all().map_err(DiskError::during(\"sync\", path))",
        to: "Ok(())",
    },
    Mutant {
        what: "the directory of a replaced file is not synced",
        file: REPLACE,
        from: "    written?;\n    dir::sync(dir::parent_of(path))",
        to: "    written",
    },
    Mutant {
        what: "the directory of a new segment is not synced",
        file: "common/disk/src/append.rs",
        from: "        dir::sync(dir::parent_of(path))?;\n",
        to: "",
    },
];

//! The replies as another program's types take them: those of the crate `qapi-qga`,
//! which were made from the interface by somebody else.

use qapi_qga::QgaCommand;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::schema;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("the_client_knows_every_command_but_one", the_client_knows_every_command_but_one)];

/// Commands that are younger than its newest release.
const UNKNOWN: &[&str] = &["guest-get-load"];

type Takes = fn(&Value) -> Result<(), serde_json::Error>;

fn entry<C: QgaCommand>() -> (&'static str, Takes)
where
    C::Ok: DeserializeOwned,
{
    (C::NAME, |returned| serde_json::from_value::<C::Ok>(returned.clone()).map(drop))
}

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        /// Every command that it knows, with its name and what takes the reply.
        fn table() -> Vec<(&'static str, Takes)> {
            vec![$(entry::<qapi_qga::$name>()),*]
        }
    };
}

table![
    guest_sync_delimited,
    guest_sync,
    guest_ping,
    guest_get_time,
    guest_set_time,
    guest_info,
    guest_shutdown,
    guest_file_open,
    guest_file_close,
    guest_file_read,
    guest_file_write,
    guest_file_seek,
    guest_file_flush,
    guest_fsfreeze_status,
    guest_fsfreeze_freeze,
    guest_fsfreeze_freeze_list,
    guest_fsfreeze_thaw,
    guest_fstrim,
    guest_suspend_disk,
    guest_suspend_ram,
    guest_suspend_hybrid,
    guest_network_get_interfaces,
    guest_get_vcpus,
    guest_set_vcpus,
    guest_get_disks,
    guest_get_fsinfo,
    guest_set_user_password,
    guest_get_memory_blocks,
    guest_set_memory_blocks,
    guest_get_memory_block_info,
    guest_exec_status,
    guest_exec,
    guest_get_host_name,
    guest_get_users,
    guest_get_timezone,
    guest_get_osinfo,
    guest_ssh_get_authorized_keys,
    guest_ssh_add_authorized_keys,
    guest_ssh_remove_authorized_keys,
    guest_get_diskstats,
    guest_get_cpustats,
    guest_network_get_route,
];

/// Panics unless the client takes what `command` returned; whether it knows the
/// command.
pub(crate) fn assert_taken(command: &str, returned: &Value) -> bool {
    let Some((_, takes)) = table().into_iter().find(|(name, _)| *name == command) else {
        assert!(UNKNOWN.contains(&command), "the client does not know {command}");
        return false;
    };
    takes(returned).unwrap_or_else(|why| panic!("{command}: the client does not take {returned}: {why}"));
    true
}

fn the_client_knows_every_command_but_one() {
    let table = table();
    let knows = |command: &&str| table.iter().any(|(name, _)| name == command);
    let unknown: Vec<&str> = schema::commands().filter(|command| !knows(command)).collect();
    assert_eq!(unknown, UNKNOWN);
    // The control: it refuses another type.
    let users = table.iter().find(|(name, _)| *name == "guest-get-users").expect("a row").1;
    assert!(users(&serde_json::json!([{ "user": "root" }])).is_err(), "without login-time");
}

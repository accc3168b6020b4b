//! The guest's network, as the host is told it: a network namespace of the test's own
//! with interfaces of several kinds, beside what stock answers there and what `ip`
//! says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, send, socket};
use postern_core::catalogue::{Command as Qga, CommandSet};
use postern_core::confine::{self, filters};
use postern_core::policy::Limits;
use postern_core::policy::parts::WorkerPart;
use postern_core::policy::telling::Telling;
use postern_core::sys::{descriptors, process};
use serde_json::{Value, json};

use crate::support::agent::{Home, Host, eventually};
use crate::support::cell::SELF;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("interfaces_and_routes_are_those_that_stock_and_ip_see", interfaces_and_routes_are_those_that_stock_and_ip_see),
    ("a_thousand_interfaces_and_routes_are_told_whole", a_thousand_interfaces_and_routes_are_told_whole),
    ("a_fallen_worker_changes_nothing_of_the_network", a_fallen_worker_changes_nothing_of_the_network),
    ("what_the_policy_does_not_list_is_not_told", what_the_policy_does_not_list_is_not_told),
];

pub(crate) const ROLES: &[Role] = &[("fallen", fallen)];

const POLICY: &str = "[commands]\nallow = [\"guest-ping\", \"guest-network-get-interfaces\", \
     \"guest-network-get-route\"]\n";

/// Interfaces of the kinds that every kernel of the tests has, with addresses of
/// both families, a label, a peer; one that is down, one without a hardware address.
const NETWORK: &str = "set -e
ip link set lo up
ip link add eth0 type veth peer name eth1
ip link set eth0 address 02:00:00:AA:bb:01 up
ip link set eth1 up
ip link add br0 type bridge
ip link set br0 up
ip tuntap add dev tun0 mode tun
ip addr add 192.0.2.5/24 dev eth0
ip addr add 192.0.2.77/28 dev eth0 label eth0:alias
ip addr add 10.9.9.1 peer 10.9.9.2/32 dev eth0
ip addr add 198.51.100.1/25 dev br0
ip -6 addr add 2001:db8::5/64 dev eth0 nodad
ip -6 addr add ::192.0.2.5/96 dev eth0 nodad
ip link add link eth0 name eth0.7 type vlan id 7 2>/dev/null && ip link set eth0.7 up && \
    ip addr add 10.7.0.1/16 dev eth0.7 || echo 'left out: this kernel has no vlan'
ip route add default via 192.0.2.1 dev eth0 metric 100
ip route add unreachable 203.0.113.0/24
ip route add blackhole 203.0.114.0/24 metric 7
ip route add 172.16.0.0/12 nexthop via 192.0.2.3 weight 1 nexthop via 192.0.2.4 weight 2 || true
ip route add 172.31.0.0/16 via 192.0.2.3 advmss 1300 window 1000 mtu 1400
ip -6 route add default via 2001:db8::1 dev eth0 metric 5
ip -6 route add unreachable 2001:db8:2::/48
ip -6 route add 2001:db8:5::/48 via 2001:db8::2 table 77
";

/// A network namespace with nothing but the loopback, for this process and all that
/// it starts.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().expect("sh");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What `ip -json` says.
fn ip(words: &str) -> Vec<Value> {
    serde_json::from_str(&shell(&format!("ip -json {words}"))).unwrap_or_default()
}

fn told(host: &mut Host, command: &str) -> Vec<Value> {
    let told = host.returns(command, &Value::Null);
    told.as_array().unwrap_or_else(|| panic!("{command}: {told}")).clone()
}

/// The stock agent; ended when it goes out of scope.
struct Stock(Child);

impl Stock {
    fn start(home: &Home) -> (Self, Host) {
        let (socket, state) = (home.path("stock.sock"), home.path("stock"));
        fs::create_dir(&state).expect("a directory");
        let mut command = Command::new("qemu-ga");
        command.args(["-m", "unix-listen", "-p"]).arg(&socket).arg("-t").arg(&state);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let stock = Self(command.spawn().expect("qemu-ga"));
        (stock, Host::connect(&socket))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `/proc/net/route` as anybody reads it: each route's interface, destination and
/// gateway as one number each, flags and metric.
fn table() -> Vec<(String, u32, u32, u64, u64)> {
    let number = |word: &str| u32::from_str_radix(word, 16).expect("a number").to_be();
    let text = fs::read_to_string("/proc/net/route").expect("the table");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (flags, metric) = (u64::from_str_radix(words[3], 16).unwrap(), words[6].parse().unwrap());
        (words[0].to_owned(), number(words[1]), number(words[2]), flags, metric)
    };
    text.lines().skip(1).map(line).collect()
}

fn v4(route: &Value) -> (String, u32, u32, u64, u64) {
    let address = |key: &str| {
        let address: std::net::Ipv4Addr = route[key].as_str().expect("an address").parse().expect("an address");
        u32::from(address)
    };
    let number = |key: &str| route[key].as_u64().expect("a number");
    let iface = route["iface"].as_str().expect("a name").to_owned();
    (iface, address("destination"), address("gateway"), number("flags"), number("metric"))
}

/// The addresses of what was told of interfaces, with their prefixes.
fn addresses(interfaces: &[Value]) -> BTreeMap<String, u64> {
    let addresses = interfaces.iter().filter_map(|one| one["ip-addresses"].as_array()).flatten();
    addresses.map(|one| (one["ip-address"].as_str().unwrap().to_owned(), one["prefix"].as_u64().unwrap())).collect()
}

/// The same by `ip`.
fn ip_addresses() -> BTreeMap<String, u64> {
    let links = ip("addr");
    let addresses = links.iter().flat_map(|link| link["addr_info"].as_array().expect("addresses"));
    addresses.map(|one| (one["local"].as_str().unwrap().to_owned(), one["prefixlen"].as_u64().unwrap())).collect()
}

fn interfaces_and_routes_are_those_that_stock_and_ip_see() {
    own_network();
    print!("{}", shell(NETWORK));
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let (_stock, mut stock) = Stock::start(&home);
    // Every address that ip sees, and no other. Interfaces that are new still say
    // something on their links, and get addresses for that.
    let interfaces = eventually("both answer the same, and what ip sees", || {
        let ours = told(&mut host, "guest-network-get-interfaces");
        (ours == told(&mut stock, "guest-network-get-interfaces") && addresses(&ours) == ip_addresses()).then_some(ours)
    });
    let names: Vec<&str> = interfaces.iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["lo", "eth0", "eth1", "br0", "tun0", "eth0:alias"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let of = |name: &str| interfaces.iter().find(|one| one["name"] == name).expect("an interface");
    assert_eq!(of("tun0"), &json!({ "name": "tun0", "hardware-address": "00:00:00:00:00:00" }));
    assert_eq!(of("eth0")["hardware-address"], "02:00:00:aa:bb:01");
    assert!(of("eth0:alias").get("statistics").is_none());

    let routes = eventually("the routes are those of the kernel's tables", || {
        let routes = told(&mut host, "guest-network-get-route");
        let (ours, ours6): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route["version"] == 4);
        let lines = fs::read_to_string("/proc/net/ipv6_route").expect("the table").lines().count();
        (ours.into_iter().map(v4).collect::<Vec<_>>() == table() && ours6.len() == lines).then_some(routes)
    });
    let ours6: Vec<_> = routes.iter().filter(|route| route["version"] != 4).collect();
    let default = ours6.iter().find(|route| route["metric"] == 5).expect("the default route");
    assert_eq!((&default["nexthop"], &default["desprefixlen"]), (&json!("2001:db8::1"), &json!("0")));
    assert!(ours6.iter().any(|route| route["destination"] == "2001:db8:5::"), "of every table");
    let recorded = agent.records_of("host-connected");
    assert_eq!(recorded.len(), 1, "nothing went wrong meanwhile");
}

fn a_thousand_interfaces_and_routes_are_told_whole() {
    /// Pairs of interfaces.
    const PAIRS: usize = 250;
    const ROUTES: usize = 2_000;
    own_network();
    let mut batch = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    let mut script = String::from("link set lo up\n");
    for pair in 0..PAIRS {
        let _ = writeln!(script, "link add a{pair} type veth peer name b{pair}");
        let _ = writeln!(script, "addr add 10.{}.{}.1/24 dev a{pair}", pair / 256, pair % 256);
    }
    script += "link set b0 up\nlink set a0 up\n";
    for route in 0..ROUTES {
        let _ = writeln!(script, "route add 172.{}.{}.0/24 via 10.0.0.2", 16 + route / 256, route % 256);
    }
    batch.stdin.take().expect("its input").write_all(script.as_bytes()).expect("the script");
    assert!(batch.wait().expect("ip").success());

    let home = Home::new();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let all = |host: &mut Host| {
        let interfaces = told(host, "guest-network-get-interfaces");
        let addresses = interfaces.iter().filter_map(|one| one["ip-addresses"].as_array()).flatten();
        let v4 = addresses.filter(|one| one["ip-address-type"] == "ipv4").count();
        let routes = told(host, "guest-network-get-route");
        (interfaces.len(), v4, routes.iter().filter(|route| route["gateway"] == "10.0.0.2").count())
    };
    let expected = (1 + 2 * PAIRS, 1 + PAIRS, ROUTES);
    assert_eq!(all(&mut host), expected);
    // A worker that dies over its answer leaves the next one the same socket.
    for _ in 0..3 {
        host.send(b"{\"execute\": \"guest-network-get-interfaces\"}");
        agent.signal("worker", Signal::SIGKILL);
        host = agent.connect();
        assert_eq!(all(&mut host), expected);
    }
}

fn what_the_policy_does_not_list_is_not_told() {
    own_network();
    print!("{}", shell(NETWORK));
    let home = Home::new();
    let names = |host: &mut Host| {
        let told = told(host, "guest-network-get-interfaces");
        told.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    {
        let agent = home.start(&format!("{POLICY}[facts]\ninterfaces = [\"br?\", \"tun*\"]\n"));
        let mut host = agent.connect();
        assert_eq!(names(&mut host), ["br0", "tun0"]);
        let routes = told(&mut host, "guest-network-get-route");
        assert!(!routes.is_empty() && routes.iter().all(|route| route["iface"] == "br0"), "{routes:?}");
    }
    let redacted = "[commands]\nallow = [\"guest-ping\"]\nredact = [\"guest-network-get-interfaces\", \
         \"guest-network-get-route\"]\n";
    let agent = home.start(redacted);
    let mut host = agent.connect();
    let interfaces = told(&mut host, "guest-network-get-interfaces");
    assert!(interfaces.iter().all(|one| one["name"] != "lo" && one.get("statistics").is_none()), "{interfaces:?}");
    let text = json!(interfaces).to_string();
    assert!(text.contains("192.0.2.5") && !text.contains("fe80") && !text.contains("127.0.0.1"), "{text}");
    let routes = told(&mut host, "guest-network-get-route");
    assert!(!routes.is_empty());
    for route in routes {
        assert!(matches!(route["destination"].as_str(), Some("0.0.0.0" | "::")), "{route}");
    }
}

// ---- the fallen worker -------------------------------------------------------------

/// What would change a network: kind of the message and its body, whose first two
/// fields say which link, address or route.
const CHANGES: &[(&str, i32, &[u8])] = {
    use nix::libc;
    /// `struct ifinfomsg` of the loopback: no flag is set, and `IFF_UP` is to change.
    const DOWN: &[u8] = &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    /// `struct ifaddrmsg` of the loopback and `IFA_LOCAL`: 192.0.2.200/32.
    const ADDRESS: &[u8] = &[2, 32, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 192, 0, 2, 200];
    /// `struct rtmsg` and `RTA_DST`: 203.0.113.0/24 is unreachable.
    const ROUTE: &[u8] = &[2, 24, 0, 0, 254, 3, 0, 7, 0, 0, 0, 0, 8, 0, 1, 0, 203, 0, 113, 0];
    &[
        ("an address", libc::RTM_NEWADDR as i32, ADDRESS),
        ("no address", libc::RTM_DELADDR as i32, ADDRESS),
        ("a route", libc::RTM_NEWROUTE as i32, ROUTE),
        ("no route", libc::RTM_DELROUTE as i32, ROUTE),
        ("a link that is down", libc::RTM_NEWLINK as i32, DOWN),
    ]
};

/// Sends each of [`CHANGES`] on this socket: what the kernel answers.
fn change(socket: i32) -> Vec<Errno> {
    let mut answers = Vec::new();
    for (_, kind, body) in CHANGES {
        let length = u32::try_from(16 + body.len()).expect("short").to_ne_bytes();
        let kind = u16::try_from(*kind).expect("a kind").to_ne_bytes();
        // NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE.
        let message = [&length[..], &kind, &0x405_u16.to_ne_bytes(), &[9, 0, 0, 0, 0, 0, 0, 0], body].concat();
        send(socket, &message, filters::ASKING).expect("sent");
        let mut answer = [0; 1024];
        let length = recv(socket, &mut answer, filters::ANSWERED).expect("an answer");
        // NLMSG_ERROR, and the number of the error.
        assert!(length >= 20 && answer[4] == 2, "{:?}", &answer[..length]);
        let errno = i32::from_ne_bytes(answer[16..20].try_into().expect("4 bytes"));
        answers.push(Errno::from_raw(-errno));
    }
    answers
}

/// Confined as a worker is whose policy tells of interfaces, with the socket that
/// it is handed, does its worst and ends well if nothing came of it.
fn fallen(_: &[String]) {
    let commands: CommandSet = [Qga::NetworkGetInterfaces].into_iter().collect();
    let part =
        WorkerPart { commands, redact: CommandSet::EMPTY, telling: Telling::default(), limits: Limits::default() };
    confine::worker(&part).expect("confined");
    let refused = change(filters::NETLINK).iter().all(|errno| *errno == Errno::EPERM);
    process::exit_now(i32::from(!refused));
}

fn a_fallen_worker_changes_nothing_of_the_network() {
    own_network();
    shell("ip link set lo up");
    // Made by who may change everything, as the broker's and systemd's are.
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkRoute);
    let socket = descriptors::move_to(socket.expect("a socket"), filters::NETLINK).expect("its number");
    let network = || (ip("addr"), ip("-4 route show table all"));
    let before = network();
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("no close-on-exec");
    let home = Home::new();
    let status = Command::new(SELF).args(["--role", "fallen"]).uid(home.worker).gid(home.worker).status();
    assert_eq!(status.expect("the worker").code(), Some(0), "1: something was not refused with EPERM");
    assert_eq!(network(), before);
    // The control: it is for the capability alone.
    assert_eq!(change(filters::NETLINK), vec![Errno::from_raw(0); CHANGES.len()]);
    assert_ne!(network(), before, "the loopback is down");
}

//! A certificate authority of a test's own.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A certificate authority, and by it a certificate for either end, with the names that the
/// configurations ask for.
pub(crate) fn certificates(directory: &Path) {
    fs::write(directory.join("openssl.cnf"), "[req]\ndistinguished_name = name\n[name]\n").expect("a file");
    let make = |name: &str, subject: &str, more: &[&str]| {
        let output = Command::new("/bin/openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args([
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.pem"),
                "-subj",
                &format!("/CN={subject}"),
            ])
            .args(more)
            .env("OPENSSL_CONF", "openssl.cnf")
            .current_dir(directory)
            .output()
            .expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("ca", "a log server's authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
    for (name, subject) in [("server", "logs.example.net"), ("guest", "a.guests.example.net")] {
        let names = format!("subjectAltName=DNS:{subject}");
        make(name, subject, &["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", &names]);
    }
}

//! Those under test, each as a child process with the config that its users write.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::connect;

/// Which product.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Mainstay,
    Nginx,
    HaProxy,
}

/// One of those under test, as a child process.
pub struct Balancer {
    /// Which product.
    pub kind: Kind,
    child: Child,
    /// Where it listens on loopback.
    pub port: u16,
    /// The same over TLS.
    pub secure_port: u16,
}

impl Balancer {
    /// Starts it in front of `node` and waits until it serves; `NotFound` when it is not installed.
    pub fn start(kind: Kind, node: u16, folder: &Path) -> io::Result<Self> {
        let (port, secure_port) = (free_port()?, free_port()?);
        let file = folder.join(format!("{kind:?}.conf"));
        fs::write(&file, config(kind, [port, secure_port], node, folder))?;
        let mut command = match kind {
            Kind::Mainstay => Command::new(env!("CARGO_BIN_EXE_mainstay")),
            Kind::Nginx => Command::new("nginx"),
            Kind::HaProxy => Command::new("haproxy"),
        };
        command.arg(if matches!(kind, Kind::HaProxy) { "-f" } else { "-c" }).arg(&file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut balancer = Self { kind, child, port, secure_port };
        balancer.wait_until_it_serves()?;
        Ok(balancer)
    }

    /// Tries until a handshake goes through, as an operator's script would.
    fn wait_until_it_serves(&mut self) -> io::Result<()> {
        for _ in 0..500 {
            if connect(self.port).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{:?} ended with {status}", self.kind)));
            }
            let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: 20_000_000 });
        }
        Err(io::Error::other(format!("{:?} does not serve", self.kind)))
    }

    /// Its process and the children of that.
    fn processes(&self) -> io::Result<Vec<String>> {
        let root = self.child.id().to_string();
        let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children"))?;
        Ok(children.split_whitespace().map(str::to_owned).chain([root]).collect())
    }

    /// CPU time so far of all its threads.
    pub fn cpu_nanos(&self) -> io::Result<f64> {
        let mut nanos = 0.0;
        for process in self.processes()? {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let stat = fs::read_to_string(task?.path().join("schedstat"))?;
                nanos += stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0.0);
            }
        }
        Ok(nanos)
    }

    /// Private memory of all its processes.
    pub fn private_bytes(&self) -> io::Result<f64> {
        let mut kib = 0.0;
        for process in self.processes()? {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let private =
                |line: &&str| line.starts_with("Private_Dirty:") || line.starts_with("Private_Clean:");
            let figure = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
            kib += rollup.lines().filter(private).filter_map(figure).sum::<f64>();
        }
        Ok(kib * 1024.0)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // By id, and only what was started here: nginx ends its workers when it is told to end.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if matches!(self.kind, Kind::Mainstay) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// What an operator would write for one node, with the limits raised.
fn config(kind: Kind, [port, secure]: [u16; 2], node: u16, folder: &Path) -> String {
    let folder = folder.display();
    match kind {
        Kind::Mainstay => format!(
            "listeners:\n  - address: \"127.0.0.1:{port}\"\n  - address: \"127.0.0.1:{secure}\"\n    \
             tls: {{ certificates: [{{ cert: {folder}/chain.pem, key: {folder}/key.pem }}] }}\nadmin: null\naccess_log: {{ format: off }}\n\
             pools:\n  bench:\n    nodes: [{{ id: ws1, address: \"127.0.0.1:{node}\" }}]\n    health: {{ tcp: {{}} }}\n"
        ),
        Kind::Nginx => format!(
            "daemon off;\nworker_processes 2;\nworker_rlimit_nofile 15000;\npid {folder}/nginx.pid;\n\
             error_log {folder}/nginx.log;\nevents {{ worker_connections 7000; }}\nhttp {{\n  access_log off;\n\
             client_body_temp_path {folder}/b;\n  proxy_temp_path {folder}/p;\n  fastcgi_temp_path {folder}/f;\n\
             uwsgi_temp_path {folder}/u;\n  scgi_temp_path {folder}/s;\n\
             upstream bench {{ ip_hash; server 127.0.0.1:{node}; }}\n  server {{\n    listen 127.0.0.1:{port};\n    listen 127.0.0.1:{secure} ssl;\n    \
             ssl_certificate {folder}/chain.pem;\n    ssl_certificate_key {folder}/key.pem;\n    \
             ssl_protocols TLSv1.3;\n    \
             location / {{\n      proxy_pass http://bench;\n      proxy_http_version 1.1;\n\
             proxy_set_header Upgrade $http_upgrade;\n      proxy_set_header Connection \"upgrade\";\n\
             proxy_set_header Host $host;\n      proxy_read_timeout 7d;\n      proxy_send_timeout 7d;\n    }}\n  }}\n}}\n"
        ),
        Kind::HaProxy => format!(
            "global\n  nbthread 2\n  maxconn 6000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 1h\n\
             timeout server 1h\n  timeout tunnel 1h\nfrontend in\n  bind 127.0.0.1:{port}\n  bind 127.0.0.1:{secure} ssl crt {folder}/both.pem\n  default_backend bench\n\
             backend bench\n  balance source\n  hash-type consistent\n  server ws1 127.0.0.1:{node} check\n"
        ),
    }
}

/// A port that was free a moment ago; only a benchmark may take that risk.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

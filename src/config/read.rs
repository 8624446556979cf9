//! Every option, each in one place: its key, its allowed values, its default. PURE.
use super::fault::{Faults, Why};
use super::section::{self, Section};
use super::{
    ClientLeg, Config, FastOpen, Keepalive, Leg, Limits, Listen, Log, Rules, ServerLeg, Stop, Timeouts, Wan,
    paths, tree, value,
};

impl Config {
    /// Parses `text` (TOML) and `sets` (`KEY=VALUE`; later ones win); returns the configuration or all faults.
    pub fn parse(text: &str, sets: &[String]) -> Result<Self, Faults> {
        let table = tree::read(text, sets).map_err(Faults::new)?;
        let (config, report) = section::root(table, config);
        let faults = report.into_faults();
        if faults.is_empty() { Ok(config) } else { Err(Faults::new(faults)) }
    }

    /// Returns every known key, dotted: for example `server.congestion-control`.
    pub fn keys() -> Vec<String> {
        section::root(tree::Table::new(), config).1.keys()
    }
}

fn config(root: &mut Section<'_>) -> Config {
    let (listen, rules) = (root.table("listen", listen), root.table("rules", rules));
    Config {
        client: root.table("client", client),
        server: root.table("server", server),
        wan: root.table("wan", |section| wan(section, &rules)),
        mptcp: root.table("mptcp", paths::mptcp),
        timeouts: root.table("timeouts", timeouts),
        limits: root.table("limits", limits),
        log: root.table("log", log),
        stop: root.table("stop", stop),
        listen,
        rules,
    }
}

fn listen(section: &mut Section<'_>) -> Listen {
    let default = Listen::default();
    Listen { port: section.take("port", value::port, default.port) }
}

fn rules(section: &mut Section<'_>) -> Rules {
    let default = Rules::default();
    let list =
        Why::Allowed("must be a list of interfaces' names, as [\"lan0\", \"lan1\"]; empty: everywhere");
    let rules = Rules {
        manage: section.take("manage", value::switch, default.manage),
        interfaces: section.take_all("interfaces", value::interface, list),
        mark: section.take("mark", value::mark, default.mark),
        table: section.take("table", value::table, default.table),
        own_mark: section.take("own-mark", value::own_mark, default.own_mark),
    };
    if section.faultless() && rules.mark.mask() & rules.own_mark.mask() != 0 {
        let own = section
            .written("own-mark")
            .map(|place| ("own-mark", place, format!("rules.mark = {}", rules.mark)));
        let divert = section
            .written("mark")
            .map(|place| ("mark", place, format!("rules.own-mark = {}", rules.own_mark)));
        if let Some((key, place, other)) = own.or(divert) {
            section.fault(key, place, Why::SharedBits { other });
        }
    }
    rules
}

fn leg(section: &mut Section<'_>) -> Leg {
    let default = Leg::default();
    Leg {
        congestion_control: section.take(
            "congestion-control",
            value::congestion_control,
            default.congestion_control,
        ),
        mptcp: section.take("mptcp", value::switch, default.mptcp),
        no_delay: section.take("no-delay", value::switch, default.no_delay),
        keepalive: keepalive(section, default.keepalive),
        user_timeout: section.take("user-timeout", value::user_timeout, default.user_timeout),
        notsent_lowat: section.take("notsent-lowat", value::notsent_lowat, default.notsent_lowat),
        send_buffer: section.take("send-buffer", value::send_buffer, default.send_buffer),
    }
}

fn keepalive(section: &mut Section<'_>, default: Keepalive) -> Keepalive {
    if !section.table_or_absent("keepalive") {
        return section.take("keepalive", value::keepalive, default);
    }
    section.table("keepalive", |timers| Keepalive::On {
        idle: timers.take("idle", value::keepalive_timer, None),
        interval: timers.take("interval", value::keepalive_timer, None),
        probes: timers.take("probes", value::keepalive_probes, None),
    })
}

fn client(section: &mut Section<'_>) -> ClientLeg {
    let client = ClientLeg {
        leg: leg(section),
        fast_open: section.take("fast-open", value::fast_open, FastOpen::default()),
    };
    no_fast_open_with_mptcp("client", section, client.fast_open, &client.leg);
    client
}

fn no_fast_open_with_mptcp(name: &str, section: &mut Section<'_>, fast_open: FastOpen, leg: &Leg) {
    let written = section.written("fast-open").filter(|_| fast_open != FastOpen::Off && leg.mptcp);
    if let Some(place) = written {
        section.fault("fast-open", place, Why::FastOpenWithMptcp(name.to_owned()));
    }
}

fn server(section: &mut Section<'_>) -> ServerLeg {
    let default = ServerLeg::default();
    let server = ServerLeg {
        leg: leg(section),
        fast_open: section.take("fast-open", value::fast_open, default.fast_open),
        source: section.take("source", value::source, default.source),
        connect_timeout: section.take("connect-timeout", value::timeout, default.connect_timeout),
    };
    no_fast_open_with_mptcp("server", section, server.fast_open, &server.leg);
    server
}

fn wan(section: &mut Section<'_>, rules: &Rules) -> Wan {
    let default = Wan::default();
    let list = Why::Allowed("must be a list of devices' names, as [\"wan0\"]; empty: none");
    let wan = Wan {
        devices: section.take_all("devices", value::interface, list),
        table: section.take("table", value::table, default.table),
        initial_window: section.take("initial-window", value::initial_window, default.initial_window),
    };
    if wan.table == rules.table {
        let table = section.written("table").map(|place| ("table", place));
        let devices = || section.written("devices").filter(|_| !wan.devices.is_empty());
        if let Some((key, place)) = table.or_else(|| devices().map(|place| ("devices", place))) {
            section.fault(key, place, Why::SharedTable(wan.table));
        }
    }
    wan
}

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        half_closed: section.take("half-closed", value::timeout, default.half_closed),
        idle: section.take("idle", value::timeout, default.idle),
    }
}

fn limits(section: &mut Section<'_>) -> Limits {
    let default = Limits::default();
    Limits {
        connections: section.take("connections", value::connections, default.connections),
        crashes: section.take("crashes", value::crashes, default.crashes),
    }
}

fn stop(section: &mut Section<'_>) -> Stop {
    let default = Stop::default();
    Stop {
        sigterm: section.take("sigterm", value::sigterm, default.sigterm),
        drain_deadline: section.take("drain-deadline", value::deadline, default.drain_deadline),
    }
}

fn log(section: &mut Section<'_>) -> Log {
    let default = Log::default();
    Log {
        target: section.take("target", value::log_target, default.target),
        format: section.take("format", value::log_format, default.format),
        level: section.take("level", value::level, default.level),
    }
}

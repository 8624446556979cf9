//! The syntax of options.
use lab::{Lab, netns};

use crate::support::{BIN, Daemon, LOG, PID_FILE, SOON, call, foreground, refused};

#[test]
fn help_and_version_are_printed_and_end_well() {
    netns(|| {
        let lab = Lab::new();
        let options =
            ["-k", "-n", "-f", "-p", "-b", "-B", "-l", "--bind-listen", "--tcp_nodelay", "[0.0.0.0]:[5000]"];
        for (option, words) in [
            ("-h", &options[..]),
            ("--help", &options),
            ("-V", &["tcp-intercept "]),
            ("--version", &["tcp-intercept "]),
        ] {
            let (exit, said) = call(&lab.gateway, &[option]);
            assert_eq!(exit, 0, "{option}: {said}");
            assert!(words.iter().all(|word| said.contains(word)), "{option}: {said}");
        }
    });
}

#[test]
fn an_unknown_option_a_missing_value_and_a_word_too_many_end_with_64_and_the_usage() {
    netns(|| {
        let lab = Lab::new();
        refused(&lab, &["-x"], 64, &["'-x'", "Usage: tcp-intercept"]);
        refused(&lab, &["--bind", "[0.0.0.0]:[5000]"], 64, &["--bind-listen", "Usage: tcp-intercept"]);
        refused(&lab, &["-l", ""], 64, &["--log <FILE>"]);
        refused(&lab, &["-k", "word"], 64, &["'word'", "Usage: tcp-intercept"]);
    });
}

#[test]
fn options_are_read_as_getopt_long_did() {
    netns(|| {
        let lab = Lab::new();
        // Bundled options, with and without a space or an equals sign, and abbreviated long names. The last of two
        // values counts.
        let daemon =
            foreground(&lab, &["-knb[0.0.0.0]:[5001]", "--bind-l=[0.0.0.0]:[5002]", "--keep", "--tcp-no"]);
        let listeners = lab.gateway.ss("-tln");
        assert!(listeners.contains("0.0.0.0:5002") && !listeners.contains("5001"), "{listeners}");
        drop(daemon);
        // A version before 1.1.0 spelled it this way.
        lab.gateway.spawn(BIN, &["--forgeground"]).wait_for("ready", SOON);
    });
}

#[test]
fn it_is_called_as_1_1_0s_init_script_did() {
    netns(|| {
        let lab = Lab::new();
        let options = ["-p", PID_FILE, "-b", "[0.0.0.0]:[5000]", "-B", "[0.0.0.0]:[0]", "-l", LOG];
        assert_eq!(call(&lab.gateway, &options), (0, String::new()));
        let daemon = Daemon::in_pid_file();
        // start-stop-daemon --name looks for this name.
        assert_eq!(lab.gateway.run(&format!("cat /proc/{}/comm", daemon.pid())), "tcp-intercept\n");
        assert_eq!(daemon.stop(), Some(0));
    });
}

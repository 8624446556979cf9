//! Failed installations leave nothing behind and report what to do.
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};
use tcp_intercept::config::Config;
use tcp_intercept::exit::Exit;
use tcp_intercept::host::rules::{self, Caller, Errors, RulesError, RulesOwner};

use crate::support::{early_demux, ours, sh, view};

/// Replaces `nft` by a script; `$NFT` is the real one.
fn instead_of_nft(script: &str) {
    std::fs::write("/run/script", format!("#!/bin/sh\nNFT=/run/nft\n{script}\n")).unwrap();
    sh("nft=$(readlink -f \"$(command -v nft)\"); cp \"$nft\" /run/nft; chmod +x /run/script
        mount --bind /run/script \"$nft\"");
}

fn the_real_nft_again() {
    sh("umount \"$(readlink -f \"$(command -v nft)\")\"");
}

fn refused() -> Errors {
    rules::install(&Config::default(), RulesOwner::Operator).unwrap_err()
}

#[test]
fn when_nft_fails_nothing_is_left() {
    lab::netns(|| {
        let before = view();
        instead_of_nft("[ \"$1\" = -f ] || exec $NFT \"$@\"; cat >&2; exit 1");
        let errors = refused();
        assert_eq!(errors.first().exit(), Exit::OsErr);
        assert!(errors.to_string().starts_with("could not add the nft table inet tcp_intercept"), "{errors}");
        assert_eq!(errors.iter().count(), 1, "the undo went well: {errors}");
        assert_eq!(ours(), "");
        the_real_nft_again();
        assert_eq!(view(), before);
    });
}

#[test]
fn when_a_sysctl_cannot_be_set_all_that_was_done_before_is_undone() {
    lab::netns(|| {
        let before = view();
        sh("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys");
        let errors = refused();
        assert!(matches!(errors.first(), RulesError::Sysctl { .. }), "{errors}");
        assert_eq!(view(), before);
        sh("umount /proc/sys; echo 0 > /proc/sys/net/ipv4/tcp_early_demux; mount --bind /proc/sys /proc/sys
            mount -o remount,bind,ro /proc/sys");
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
    });
}

#[test]
fn when_a_replacement_fails_the_old_rules_are_there_again() {
    lab::netns(|| {
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        let before = ours();
        let listing = sh("nft -s list table inet tcp_intercept");
        let mut other = Config::default();
        other.rules.table = std::num::NonZeroU32::new(77).unwrap();
        other.listen.port = tcp_intercept::units::Port::new(7777).unwrap();
        sh("echo 1 > /proc/sys/net/ipv4/tcp_early_demux; mount --bind /proc/sys /proc/sys
            mount -o remount,bind,ro /proc/sys");
        rules::install(&other, RulesOwner::Operator).unwrap_err();
        assert_eq!(ours(), before);
        assert_eq!(sh("nft -s list table inet tcp_intercept"), listing);
    });
}

#[test]
fn a_default_route_of_somebody_else_in_our_table_is_refused_and_named() {
    lab::netns(|| {
        for (add, delete) in [
            ("ip route add default dev lo table 5", "ip route del default table 5"),
            ("ip -6 route add unreachable default table 5", "ip -6 route del unreachable default table 5"),
        ] {
            sh(add);
            let before = view();
            let errors = refused();
            assert_eq!(errors.first().exit(), Exit::Unavailable);
            assert!(errors.to_string().contains("rules.table"), "{errors}");
            assert_eq!(view(), before);
            sh(delete);
        }
    });
}

/// Hides every directory of PATH that contains nft, except for the programs that these tests run.
fn without_nft() {
    sh("mkdir /run/bin
        for name in ip sh cat grep; do cp \"$(readlink -f \"$(command -v $name)\")\" /run/bin/$name; done
        for nft in $(which -a nft | xargs -n1 readlink -f | sort -u); do
          mount --bind /run/bin \"$(dirname \"$nft\")\"
        done");
}

#[test]
fn without_nft_the_package_is_named_and_nothing_is_left() {
    lab::netns(|| {
        without_nft();
        let errors = refused();
        assert!(matches!(errors.first(), RulesError::NoNft { .. }), "{errors}");
        assert_eq!(errors.first().exit(), Exit::Unavailable);
        assert!(errors.to_string().contains("install the package nftables"), "{errors}");
        let left = sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all");
        assert!(!left.contains("155"), "{left}");
        assert_eq!(early_demux(), "1");
    });
}

#[test]
fn a_kernel_without_tproxy_is_named_with_what_nft_says() {
    lab::netns(|| {
        instead_of_nft(
            "[ \"$1\" = -f ] || exec $NFT \"$@\"
             echo '/dev/stdin:30:5-99: Error: Could not process rule: No such file or directory' >&2
             echo '    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:5000' >&2; exit 1",
        );
        let errors = refused();
        assert_eq!(errors.first().exit(), Exit::Unavailable);
        assert!(
            errors.to_string().contains("nft_tproxy") && errors.to_string().contains("Could not process")
        );
        assert_eq!(ours(), "");
    });
}

/// Drops CAP_NET_ADMIN from this thread and everything that it starts.
fn give_up_net_admin() {
    remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN).unwrap();
    let without = |set: CapabilitySet| set - CapabilitySet::NET_ADMIN;
    let sets = capabilities(None).unwrap();
    let sets = CapabilitySets {
        effective: without(sets.effective),
        permitted: without(sets.permitted),
        inheritable: without(sets.inheritable),
    };
    set_capabilities(None, sets).unwrap();
}

#[test]
fn without_the_capability_it_is_named_and_nothing_is_left() {
    lab::netns(|| {
        let (before, config) = (view(), Config::default());
        std::thread::spawn(|| {
            give_up_net_admin();
            let errors = refused();
            assert!(matches!(errors.first(), RulesError::NoPermission { .. }), "{errors}");
            assert_eq!(errors.first().exit(), Exit::NoPerm);
            assert!(errors.to_string().contains("CAP_NET_ADMIN"), "{errors}");
        })
        .join()
        .unwrap();
        assert_eq!(view(), before);
        rules::install(&config, RulesOwner::Operator).unwrap();
        let before = view();
        std::thread::spawn(move || {
            give_up_net_admin();
            let errors = rules::remove(config.rules.own_mark, Caller::Operator).unwrap_err();
            assert_eq!(errors.first().exit(), Exit::NoPerm, "{errors}");
        })
        .join()
        .unwrap();
        assert_eq!(view(), before);
    });
}

#[test]
fn removing_goes_on_after_an_error_and_reports_it() {
    lab::netns(|| {
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        instead_of_nft("exit 3");
        let errors = rules::remove(Config::default().rules.own_mark, Caller::Operator).unwrap_err();
        assert!(errors.to_string().contains("nft"), "{errors}");
        assert!(!sh("ip rule; ip -6 rule; ip route show table all").contains("155"));
        the_real_nft_again();
        assert_eq!(early_demux(), "0", "the table has the old value");
        rules::remove(Config::default().rules.own_mark, Caller::Operator).unwrap();
        assert_eq!((ours(), early_demux()), (String::new(), "1".to_owned()));
    });
}

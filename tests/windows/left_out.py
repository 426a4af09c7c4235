"""Tests of shared code that do not pass on Windows or under Wine, by name, and why.

They run all the same, so that `make test-windows` reports one that passes again. A name without parameters is that of
all of a test's parameters.
"""

from __future__ import annotations

LEFT_OUT_SECONDS = 120.0
"""Time for a test that is not expected to pass."""

_BACKSLASH = "expects doubled backslashes, which Windows' paths do not have"
_WORKERS = "starts worker processes, which exist on Linux only"
_OSQUERY = "compares with osquery over Unix sockets"
_HANGUP = "reloads on SIGHUP; Windows has `zeek-agent reload`"
_RESOURCE = "measures time or memory by the resource module of POSIX"
_RENAMES = "renames or removes a file while the agent has it open, which Windows refuses"
_PIPES = "makes a named pipe of POSIX in a directory"
_LINKS = "Wine 8 creates no symbolic links"
_FORKS = "forks, and is killed at certain steps"
_OPENSSL = "makes certificates with the program openssl, which is not installed under Wine"

FILES: dict[str, str] = {
    "tests/collector/test_collector_process.py": "the collector's own process exists on Linux only",
    "tests/database/test_times.py": _OSQUERY,
    "tests/database/test_withheld_columns.py": _OSQUERY,
}
"""Files that cannot be imported."""

_DIFFERENCES = "tests/queries/test_difference_strategy.py"
_ARCHIVE = "tests/collector/test_log_archive.py"
_HOSTS = "tests/collector/test_collector_hosts.py"
_WRITER = "tests/collector/test_log_writer.py"
_TLS = "tests/collector/test_collector_tls.py"
_CONTROL = "tests/control/test_control.py"
_BLOCKED = "tests/events/test_events_blocked.py"
_RESULTS = "tests/results/test_result_store.py"
_MIGRATIONS = "tests/events/test_events_migrations.py"
_PROGRAM = "tests/collector/test_collector_program.py"

TESTS: dict[str, str] = {
    f"{_PROGRAM}::test_a_hangup_loads_renewed_certificates_from_the_same_files": _HANGUP,
    f"{_PROGRAM}::test_a_hangup_replaces_queries_and_leaves_the_others_alone": _HANGUP,
    f"{_PROGRAM}::test_a_hangup_with_something_invalid_changes_nothing": _HANGUP,
    f"{_PROGRAM}::test_a_key_that_cannot_be_used_is_a_usage_error": _OPENSSL,
    **dict.fromkeys(
        (
            f"{_TLS}::test_a_certificate_with_the_same_subject_is_another_one",
            f"{_TLS}::test_a_client_that_does_not_finish_the_handshake_is_disconnected",
            f"{_TLS}::test_a_gateway_speaks_for_many_agents",
            f"{_TLS}::test_a_key_that_everybody_can_read_is_reported",
            f"{_TLS}::test_a_key_with_a_passphrase_is_refused_without_asking_for_it",
            f"{_TLS}::test_a_reported_certificate_does_not_stop_the_collector",
            f"{_TLS}::test_an_agent_has_the_id_of_its_certificate_only",
            f"{_TLS}::test_an_agent_that_does_not_use_tls_is_not_served",
            f"{_TLS}::test_an_agent_with_a_certificate_delivers_rows",
            f"{_TLS}::test_an_agent_without_a_certificate_of_the_client_ca_is_refused",
            f"{_TLS}::test_another_certificate_is_another_agent_even_with_the_same_instance",
            f"{_TLS}::test_certificates_that_agents_refuse_are_reported",
            f"{_TLS}::test_clients_of_one_address_that_say_nothing_do_not_keep_agents_out",
            f"{_TLS}::test_connections_in_the_handshake_are_limited",
            f"{_TLS}::test_files_that_cannot_be_used_are_named_with_the_reason",
            f"{_TLS}::test_ids_by_certificate_need_an_authority",
            f"{_TLS}::test_new_certificates_are_used_for_new_connections_and_open_ones_go_on",
            f"{_TLS}::test_tls_before_1_2_is_refused",
            f"{_TLS}::test_without_a_client_ca_any_agent_is_served_encrypted",
        ),
        _OPENSSL,
    ),
    **dict.fromkeys(
        (
            f"{_ARCHIVE}::test_a_kill_at_any_moment_leaves_every_log_once",
            f"{_ARCHIVE}::test_a_log_that_root_left_does_not_keep_the_directorys_owner_from_writing",
            f"{_ARCHIVE}::test_nothing_is_removed_through_a_link_of_another_user",
            f"{_ARCHIVE}::test_only_logs_of_its_own_are_touched",
            f"{_ARCHIVE}::test_the_owner_of_the_directory_tidies_what_root_opened",
        ),
        "forks, or changes the owners of files",
    ),
    f"{_ARCHIVE}::test_the_total_size_holds_in_a_flood[20000]": (
        "makes thousands of files: more than three minutes under Wine on a busy machine"
    ),
    **dict.fromkeys(
        (
            f"{_HOSTS}::test_a_file_of_somebody_else_is_named_and_left_alone",
            f"{_HOSTS}::test_a_pipe_that_replaces_the_file_does_not_hold_up_the_collector",
            f"{_HOSTS}::test_the_file_is_not_read_through_a_link",
        ),
        "makes links, pipes or sockets of POSIX",
    ),
    **dict.fromkeys(
        (
            f"{_HOSTS}::test_the_file_has_the_mode_of_the_logs",
            f"{_WRITER}::test_a_leftover_that_everybody_could_read_is_narrowed",
            f"{_WRITER}::test_logs_are_private_whatever_the_umask_rotated_ones_too",
        ),
        "expects file modes",
    ),
    f"{_WRITER}::test_a_log_that_was_taken_away_is_opened_again": _RENAMES,
    f"{_WRITER}::test_times_in_headers_and_names_are_local": "sets the time zone as on POSIX",
    "tests/collector/test_collector_summary.py::test_a_reader_that_went_away_ends_it_quietly": (
        "closes a pipe; Windows reports that as an invalid argument"
    ),
    "tests/collector/test_osquery_pack.py::test_a_configuration_names_no_files_outside_of_its_directory": _LINKS,
    "tests/collector/test_osquery_pack.py::test_only_regular_files_of_a_bounded_size_are_read": _PIPES,
    **dict.fromkeys(
        (
            f"{_CONTROL}::test_a_client_sends_several_requests_on_one_connection",
            f"{_CONTROL}::test_a_client_that_disconnects_aborts_its_answer",
            f"{_CONTROL}::test_a_client_that_does_not_read_is_bounded_and_disconnected",
            f"{_CONTROL}::test_a_fault_in_an_answer_does_not_end_the_connection",
            f"{_CONTROL}::test_a_path_longer_than_the_systems_limit_works",
            f"{_CONTROL}::test_a_stale_socket_is_replaced",
            f"{_CONTROL}::test_an_obstacle_at_the_path_is_named",
            f"{_CONTROL}::test_connections_are_bounded",
            f"{_CONTROL}::test_malformed_input_is_answered_and_the_connection_kept",
            f"{_CONTROL}::test_nobody_there_is_an_error_of_its_own",
            f"{_CONTROL}::test_requests_may_be_sent_ahead",
            f"{_CONTROL}::test_stop_ends_clients_and_removes_the_socket",
            f"{_CONTROL}::test_the_socket_is_its_owners_unless_a_group_is_given",
        ),
        "uses the Unix socket itself, or uids",
    ),
    "tests/database/test_event_copies.py::test_a_store_whose_file_is_being_replaced_is_waited_for": _RENAMES,
    "tests/database/test_osquery_functions.py::test_the_functions_work_in_worker_processes": _WORKERS,
    **dict.fromkeys(
        (
            f"{_BLOCKED}::test_a_fault_of_the_owner_does_not_end_the_writer",
            f"{_BLOCKED}::test_a_stopped_reader_costs_no_row",
            f"{_BLOCKED}::test_rows_that_wait_at_the_end_are_written_although_a_reader_blocks",
            f"{_BLOCKED}::test_the_copy_is_an_ordinary_store",
            f"{_BLOCKED}::test_the_owner_can_end_the_reader_before",
            f"{_RESULTS}::test_a_stopped_reader_stops_neither_the_event_store_nor_results",
        ),
        "stops a process by SIGSTOP",
    ),
    f"{_BLOCKED}::test_a_crash_at_any_step_of_the_replacement_leaves_every_row": _RENAMES,
    "tests/events/test_events.py::test_only_the_owner_can_read_the_file": (
        "expects that a new file inherits its directory's access list, which Wine 8 does not do"
    ),
    f"{_MIGRATIONS}::test_a_plugins_table_keeps_its_rows_over_versions_of_the_plugin": (
        "calls importlib.invalidate_caches(), for which the interpreter must have the version of the standard library, "
        "which is this Python's"
    ),
    f"{_MIGRATIONS}::test_kill_9_at_any_moment_of_an_upgrade_leaves_every_row": _FORKS,
    f"{_RESULTS}::test_a_crash_while_the_file_is_replaced_loses_nothing": _FORKS,
    f"{_RESULTS}::test_a_hostile_reader_cannot_keep_results_from_being_saved": "locks a byte by fcntl, as on POSIX",
    f"{_RESULTS}::test_hostile_deltas_change_nothing_or_a_result_that_is_whole_and_within_the_budget": (
        "makes unnamed files of Linux (memfd_create)"
    ),
    f"{_RESULTS}::test_killed_between_delivery_and_apply_the_old_result_is_there": _FORKS,
    f"{_RESULTS}::test_killed_while_a_delta_is_applied_the_result_is_the_old_or_the_new_one": _FORKS,
    f"{_DIFFERENCES}::test_a_result_over_the_budget_is_a_clear_error_and_others_go_on": _WORKERS,
    f"{_DIFFERENCES}::test_a_second_identical_query_has_a_result_of_its_own_that_ends_with_it": _WORKERS,
    f"{_DIFFERENCES}::test_changes_are_reported_once_and_over_a_restart": _WORKERS,
    f"{_DIFFERENCES}::test_snapshot_plus_differences_begins_with_the_whole_result": _WORKERS,
    f"{_DIFFERENCES}::test_values_of_a_column_that_is_denied_later_are_not_reported_as_gone": _WORKERS,
    f"{_DIFFERENCES}::test_values_that_are_masked_later_are_not_reported_as_gone": _WORKERS,
    f"{_DIFFERENCES}::test_what_was_not_delivered_is_reported_again": _WORKERS,
    "tests/masking/test_log_messages.py::test_the_time_for_a_hostile_message_is_bounded": _RESOURCE,
    "tests/masking/test_masking.py::test_the_time_for_a_hostile_line_is_bounded": _RESOURCE,
    "tests/queries/test_event_delivery_with_kills.py::test_event_workers_are_killed_at_any_time": _WORKERS,
    "tests/queries/test_queries_files.py::test_rows_of_a_file_that_is_no_longer_readable_are_not_removed": _LINKS,
    "tests/results/test_results_memory.py::test_memory_is_bounded_when_all_of_a_large_result_changes": _RESOURCE,
    "tests/terminal/test_shell.py::test_bytes_that_are_not_utf8_are_those_of_the_host": (
        "expects bytes that are not UTF-8; texts of Windows are UTF-16"
    ),
    "tests/test_config.py::test_metrics_are_served_locally[unix:/run/x.sock]": "names a Unix socket",
    "tests/zeek/test_zeek_batches.py::test_cells_are_written_as_from_json_takes_them": _BACKSLASH,
    "tests/zeek/test_zeek_data.py::test_any_host_bytes_are_escaped_reversibly": _BACKSLASH,
    "tests/zeek/test_zeek_data.py::test_cells_are_written_as_their_type": _BACKSLASH,
}


def reason_for(test: str) -> str | None:
    """Why a test or file is left out; None if it has to pass."""
    file, name = test.partition("::")[0], test.partition("[")[0]
    return FILES.get(file) or TESTS.get(test) or TESTS.get(name)

"""What is promised to whoever runs the program on patients' slides, and by which tests and trials it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """In plain words; the tests, as pytest calls them; and what the trials of the benchmark say, if they were run."""

    words: str
    tests: tuple[str, ...]
    numbers: Callable[[Figures], str] = lambda _: ""


def _count(figures: Figures, *outcomes: str) -> int:
    """Damaged files with some outcomes, or all."""
    ways = (each for ways in figures.get("files", {}).get("found", {}).values() for each in ways.values())
    return sum(count for each in ways for outcome, count in each.items() if not outcomes or outcome in outcomes)


def _of_files(figures: Figures) -> str:
    kinds = len(figures.get("files", {}).get("found", {}))
    hangs, crashes = _count(figures, "hang"), _count(figures, "crash")
    return f"{_count(figures):,} files of {kinds} kinds: {hangs} hangs, {crashes} ends of the process that read them"


def _of_trial(name: str, what: str) -> Callable[[Figures], str]:
    def say(figures: Figures) -> str:
        trial = figures.get(name)
        if trial is None:
            return "not run"
        came = ", ".join(f"{count} {outcome}" for outcome, count in trial["came"].items())
        return f"{trial['tried']} {what} ({came}); {len(trial['wrong'])} went wrong"

    return say


def _of_soak(figures: Figures) -> str:
    found = figures.get("soak")
    if found is None:
        return "not run"
    return "; ".join(
        f"{name}: {each['slides']} slides, memory {each['growth']:+.1%}, "
        f"handles {each['handles'][0]:.0f} and {each['handles'][1]:.0f}, "
        f"threads {each['threads'][0]:.0f} and {each['threads'][1]:.0f}"
        for name, each in found.items()
    )


STRANGERS, ENDURANCE = "tests/test_strangers_files.py::", "tests/test_endurance.py::"
PROMISES = (
    Promise(
        "A damaged file is one sentence that names it, within 30 s, and costs only itself",
        (
            f"{STRANGERS}test_damaged_files_are_read_or_refused",
            f"{STRANGERS}test_damage_that_was_once_missed_is_refused",
            "tests/prediction/test_one_slide.py::test_one_bad_slide_costs_only_itself",
            "tests/result/test_cohort.py::test_a_damaged_result_costs_only_itself",
        ),
        _of_files,
    ),
    Promise(
        "A slide that ends the process that reads it fails alone among several, also on a cluster",
        (
            "tests/batch/test_child.py::test_a_slide_that_ends_the_process_fails_alone",
            "tests/batch/test_child.py::test_slides_that_a_dead_process_was_at_are_gone_on_with",
            "tests/batch/test_cluster.py::test_a_slide_that_ends_its_workers_fails_alone",
            "tests/batch/test_cluster.py::test_the_slide_of_a_killed_worker_is_done_by_another",
        ),
    ),
    Promise(
        "Pixels that cannot be decoded are an error and never grey",
        (
            "tests/slides/test_stored_tiles.py::test_a_damaged_tile_is_an_error_and_never_grey",
            f"{STRANGERS}test_a_damaged_strip_is_an_error",
        ),
        lambda figures: f"{_count(figures, 'invented')} of the damaged files gave pixels that are not the slide's",
    ),
    Promise(
        "Nothing in a file is executed",
        (
            "tests/model/test_published.py::test_pickled_code_is_not_executed",
            "tests/networks/test_encoder.py::test_pickled_code_is_not_run",
            "tests/networks/test_inert_pickle.py::test_nothing_in_a_pickle_is_called",
            "tests/networks/test_inert_pickle.py::test_hostile_programs_build_nothing",
            "tests/data_sets/test_panel.py::test_numpy_gene_lists_hold_no_pickle",
        ),
    ),
    Promise(
        "No file of the folder that one stands in is run, whatever it is called, nor by a child process",
        (
            "tests/test_working_folder.py::test_predictions",
            "tests/test_working_folder.py::test_a_cluster_whose_workers_stand_there_too",
            "tests/test_working_folder.py::test_training_in_two_processes",
        ),
    ),
    Promise(
        "One entry of a folder costs only itself: what cannot be read, is no slide, or shares its name with one",
        (
            "tests/batch/test_folders.py::test_the_rest_of_a_folder_goes_on",
            "tests/batch/test_folders.py::test_a_folder_that_cannot_be_read_costs_only_itself",
            "tests/batch/test_folders.py::test_what_is_no_file_is_passed_over_and_waited_for_by_nobody",
            "tests/batch/test_jobs.py::test_a_result_stays_its_slide_s_whatever_lies_beside_it_later",
        ),
    ),
    Promise(
        "Streams that are closed, full or read by nobody, and names in any bytes, keep no call from its work",
        (
            "tests/test_streams.py::test_a_prediction_whose_streams_are_closed",
            "tests/test_streams.py::test_a_full_disk_behind_a_stream",
            "tests/test_streams.py::test_a_reader_that_goes_ends_no_prediction",
            "tests/test_streams.py::test_names_in_all_bytes",
        ),
    ),
    Promise(
        "No link is followed out of a file, nor at an output's name",
        (
            f"{STRANGERS}test_results_that_point_elsewhere_are_refused",
            "tests/data_sets/test_visium.py::test_damaged_and_hostile_files_are_refused",
            "tests/data_sets/test_annotated.py::test_damaged_and_hostile_files_are_refused",
            f"{STRANGERS}test_a_link_at_an_outputs_name_is_replaced_and_not_followed",
        ),
    ),
    Promise(
        "Absurd sizes, bombs and claims are refused before anything is allocated",
        (
            f"{STRANGERS}test_tiffs_of_absurd_size_are_refused",
            f"{STRANGERS}test_images_of_absurd_size_are_refused",
            f"{STRANGERS}test_a_jpeg_tile_that_claims_to_be_huge_is_refused",
            f"{STRANGERS}test_tables_that_unpack_to_more_than_a_table_are_refused",
            f"{STRANGERS}test_torch_files_that_unpack_to_far_more_are_refused",
            "tests/model/test_file.py::test_files_of_other_kinds_are_refused",
        ),
    ),
    Promise(
        "Names from files reach no path, markup, formula or terminal",
        (
            f"{STRANGERS}test_odd_gene_names_reach_no_path_and_no_markup",
            f"{STRANGERS}test_gene_names_that_no_file_can_hold_are_refused_with_the_model",
            f"{STRANGERS}test_a_name_that_begins_with_a_dash_is_no_formula",
            "tests/result/test_file.py::test_a_slides_name_in_a_result_is_never_a_path",
            "tests/rendering/test_table.py::test_no_cell_is_a_formula",
            "tests/rendering/test_report.py::test_names_from_files_stay_inside_the_data",
            "tests/result/test_cohort.py::test_no_name_from_a_file_is_a_formula_or_a_second_line",
            "tests/test_cli.py::test_a_slide_name_that_begins_with_a_dash",
        ),
    ),
    Promise(
        "A file under its final name is whole; a killed call goes on, and ends as if undisturbed",
        (
            f"{ENDURANCE}test_killed_calls_go_on_and_end_as_if_undisturbed",
            "tests/prediction/test_shards.py::test_an_interrupted_prediction_goes_on_and_ends_as_if_undisturbed",
            "tests/batch/test_slides.py::test_a_killed_call_is_taken_up_at_once",
            "tests/test_cli.py::test_ctrl_c_leaves_no_half_result_and_the_same_command_goes_on",
        ),
        _of_trial("kills", "kills survived"),
    ),
    Promise(
        "A full disk costs only what does not fit",
        (
            f"{ENDURANCE}test_a_full_disk_costs_only_what_does_not_fit",
            f"{ENDURANCE}test_an_hdf5_file_that_does_not_fit_is_an_error_and_leaves_nothing",
            "tests/rendering/test_drawn_before.py::test_a_full_disk_is_one_error_and_leaves_nothing",
        ),
        _of_trial("disk", "calls with at most 1 MB left"),
    ),
    Promise(
        "Where memory does not suffice nothing is damaged, and the same call goes on when it does",
        (f"{ENDURANCE}test_little_memory_is_told_of_and_nothing_is_damaged",),
        _of_trial("memory", "calls under `ulimit -v`"),
    ),
    Promise(
        "Memory does not grow with the number of slides, and no handle or thread is left over",
        (
            f"{ENDURANCE}test_many_slides_leave_no_handles_and_threads",
            "tests/prediction/test_one_slide.py::test_no_thread_reads_a_slide_that_is_closed",
        ),
        _of_soak,
    ),
    Promise(
        "Nothing of a scanner's metadata, label or macro image, and no absolute path, is in an output; "
        "with `--anonymous` no slide's name",
        (
            "tests/test_privacy.py::test_nothing_of_a_slides_metadata_reaches_an_output",
            "tests/batch/test_anonymous.py::test_no_output_holds_a_slides_name",
            "tests/prediction/test_leases.py::test_a_lease_names_no_machine",
        ),
    ),
    Promise(
        "Many calls share a folder, and each slide is done once",
        (
            "tests/batch/test_slides.py::test_two_calls_on_one_folder_do_each_slide_once",
            "tests/prediction/test_leases.py::test_of_many_at_once_one_gets_it",
        ),
    ),
    Promise(
        "What becomes of each slide is told: in a table on a terminal, in lines elsewhere, as JSON for schedulers",
        (
            "tests/batch/test_child.py::test_a_table_is_drawn_on_a_terminal_and_wiped_away",
            "tests/test_log_json.py::test_what_becomes_of_each_slide_is_an_event",
            "tests/test_log_json.py::test_a_call_that_could_not_work_ends_in_one_error",
            "tests/test_log_json.py::test_ctrl_c_is_the_last_event",
        ),
    ),
    Promise(
        "A cluster's results are those of one machine, also of slides that workers share, and if one is lost",
        (
            "tests/batch/test_cluster.py::test_a_cluster_predicts_what_one_machine_does",
            "tests/batch/test_spare_workers.py::test_workers_without_a_slide_help_with_that_of_another",
            "tests/batch/test_spare_workers.py::test_a_slide_survives_the_loss_of_either_worker_that_is_at_it",
            "tests/batch/test_spare_workers.py::test_what_helpers_of_an_interrupted_call_leave_is_no_obstacle",
            "tests/batch/test_shared_slide.py::test_shards_of_a_prediction_that_was_discarded_do_no_harm",
            "tests/batch/test_cluster.py::test_what_is_wrong_with_a_cluster_is_said_before_anything_is_predicted",
        ),
    ),
    Promise(
        "Dependencies have bounds that were tried, and the packages hold what they should",
        (
            "tests/test_packaging.py::test_every_dependency_has_a_lower_and_an_upper_bound",
            "tests/test_packaging.py::test_the_constraints_pin_every_dependency_within_its_bounds",
            "tests/test_packaging.py::test_wheel_and_sdist_hold_the_program_and_its_models_and_nothing_else",
        ),
    ),
    Promise(
        "What killed calls leave is listed, and removed, by `stpredict clean`; nothing else is",
        (
            "tests/commands/test_clean.py::test_what_a_killed_call_left_is_listed_and_then_removed",
            "tests/commands/test_clean.py::test_what_a_running_prediction_is_at_stays",
            "tests/commands/test_clean.py::test_only_its_own_files_are_removed_and_no_link_is_followed",
            "tests/commands/test_clean.py::test_compiled_networks_are_listed_and_removed",
        ),
    ),
)

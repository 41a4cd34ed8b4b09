from __future__ import annotations

from stpredict.errors import some_of


def test_the_name_of_a_part_of_many_patients_is_short():
    assert some_of("A+B+C") == "A+B+C"
    assert some_of("+".join(f"P{number}" for number in range(27))) == "P0+P1+P2+P3+P4 and 22 more"

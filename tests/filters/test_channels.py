import pytest

from cnnviz.core.errors import UsageError
from cnnviz.filters.channels import Pick, describe, expand, parse, resolve

COUNTS = {"conv1": 4, "block.conv1": 8, "block.relu": 8, "block.conv2": 16}
CONVOLUTIONS = ["conv1", "block.conv1", "block.conv2"]


def chosen(*texts: str, seed: int = 0) -> dict[str, tuple[int, ...]]:
    def count(names):
        return {name: COUNTS[name] for name in names}

    return dict(resolve(texts, list(COUNTS), CONVOLUTIONS, count, seed))


def test_numbers_and_ranges_include_both_ends():
    assert chosen("block.conv2:3,7-9,3") == {"block.conv2": (3, 7, 8, 9)}


def test_several_specifications_join_in_the_order_of_the_network():
    assert chosen("block.conv1:1", "conv1:0", "block.conv1:5,1") == {
        "conv1": (0,),
        "block.conv1": (1, 5),
    }


def test_all_and_all_but_are_complements():
    assert chosen("conv1:all") == {"conv1": (0, 1, 2, 3)}
    assert chosen("conv1:all-but:1-2") == {"conv1": (0, 3)}


def test_plus_and_star_name_several_layers():
    assert chosen("conv1+block.relu:2") == {"conv1": (2,), "block.relu": (2,)}
    assert list(chosen("block.*:0")) == ["block.conv1", "block.relu", "block.conv2"]


def test_random_draws_that_many_from_all_named_layers_and_repeats_with_its_seed():
    drawn = chosen("conv1+block.conv1:random:10", seed=3)
    assert sum(map(len, drawn.values())) == 10
    assert set(drawn) <= {"conv1", "block.conv1"}
    assert drawn == chosen("conv1+block.conv1:random:10", seed=3)
    assert any(drawn != chosen("conv1+block.conv1:random:10", seed=s) for s in range(4))


def test_random_without_a_layer_draws_from_all_convolutions():
    everything = chosen("random:28")
    assert everything == {name: tuple(range(COUNTS[name])) for name in CONVOLUTIONS}


def test_description_is_read_back_as_the_same_channels():
    channels = {"conv1": (0, 1, 2), "block.conv2": (3, 7, 8, 15)}
    assert describe(channels) == "conv1:0-2 block.conv2:3,7-8,15"
    assert chosen(*describe(channels).split()) == channels


def test_parse_keeps_the_words():
    selection = parse("a+b:all-but:2,4-5")
    assert (selection.layers, selection.pick, selection.channels) == (
        ("a", "b"),
        Pick.ALL_BUT,
        (2, 4, 5),
    )
    assert expand(parse("random:2"), [], ["x"]) == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1", "'conv1' does not name any filters; write LAYER:3,7-12"),
        ("conv1:", "does not name any filters"),
        (":3", "does not name any filters"),
        ("conv1:x", "invalid channel or range 'x' in 'conv1:x'"),
        ("conv1:-1", "invalid channel or range"),
        ("conv1:1-", "invalid channel or range"),
        ("conv1:3,,4", "invalid channel or range"),
        ("conv1:3-1", r"runs backwards; write 1-3"),
        ("conv1:0-99999999999", "longer than any layer"),
        ("conv1:random:0", "invalid number of filters"),
        ("conv1:random:x", "invalid number of filters"),
        ("conv1:4", r"channel 4 in 'conv1:4' does not exist; layer 'conv1' has channels 0 to 3"),
        ("conv1:all-but:4", "channel 4 in"),
        ("conv1:all-but:0-3", "leaves no channel of 'conv1'"),
        ("conv1:random:5", "asks for 5 filters; there are 4"),
        ("nothing*:3", r"no layer matches 'nothing\*'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_offending_part(text, message):
    with pytest.raises(UsageError, match=message):
        chosen(text)

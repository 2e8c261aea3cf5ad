"""Recorded traffic of four formats to Trace documents, and back through the reader."""

import pytest

from optimizer.documents import load
from optimizer.exchange import IMPORTERS, CannotRead, File, Input

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,0
2023-11-16 18:15:52.6805900,91,16
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1200, "output_length": 50, "hash_ids": [1, 2, 3]}
{"timestamp": 2000, "input_length": 1300, "output_length": 40, "hash_ids": [1, 2, 9]}
"""
SERVEGEN = """t_s,rate_rps,active_clients,mean_interarrival_cv,in_mean,out_mean
0,10.0,3,1.5,400,100
600,30.0,4,2.5,200,300
"""
PLAIN = "at_s,input_tokens,output_tokens,deployment\n5,100,10,chat\n7,300,30,code\n"


def imported(text: str):
    return IMPORTERS["trace"](Input((File("t.csv", text),), (), lambda file: []))


def test_azure():
    found = imported(AZURE)
    data = found.documents[0].data
    assert data["requests"].splitlines()[1:] == ["0,374,44,0", "4.3146,396,109,0", "6,91,16,0"]
    assert data["demand"]["requests_per_second"] == pytest.approx(0.5)
    assert data["demand"]["input_tokens"] == pytest.approx(287)
    assert found.left_out == ("t.csv: 1 requests without tokens in or out",)


def test_mooncake_blocks_seen_before_are_cached():
    data = imported(MOONCAKE).documents[0].data
    assert data["requests"].splitlines()[1:] == ["0,1200,50,0", "2,1300,40,1024"]
    assert data["demand"]["prefix_hit_rate"] == pytest.approx(1024 / 2500, abs=1e-4)


def test_servegen_keeps_its_windows():
    data = imported(SERVEGEN).documents[0].data
    assert data["seconds"] == 1200
    assert data["demand"] == {
        "requests_per_second": 20.0,
        "input_tokens": 250.0,
        "output_tokens": 250.0,
        "arrival_cv": 2.25,
        "peak_factor": 1.5,
    }


@pytest.mark.parametrize("text", [AZURE, MOONCAKE, SERVEGEN, PLAIN])
def test_what_is_imported_can_be_read(text: str, tmp_path):
    from optimizer.documents import yaml_text

    file = tmp_path / "t.yaml"
    file.write_text(yaml_text(imported(text).documents[0].data), encoding="utf-8")
    (trace,) = load([file], need=("Trace",)).traces
    assert trace.requests or trace.windows
    assert [r.at_s for r in trace.requests] == sorted(r.at_s for r in trace.requests)


def test_deployments_are_kept():
    assert imported(PLAIN).documents[0].data["requests"].splitlines()[1] == "0,100,10,0,chat"


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,b\n1,2\n", "no column"), ("at_s,input_tokens,output_tokens\n1,x,2\n", "t.csv:2:"),
     ("{}\n", "input_length"), ("at_s,input_tokens,output_tokens\n1,2,2\n", "fewer than two")],
)  # fmt: skip
def test_what_cannot_be_read_is_told(text: str, said: str):
    with pytest.raises(CannotRead, match=said):
        imported(text)

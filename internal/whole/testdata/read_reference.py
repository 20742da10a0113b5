#!/usr/bin/env python3
"""Reads what --output reference writes, and shares nothing with the program that wrote it.

The shape is that of the PAM 2019 paper's tool, version 0.3d, as this project documents it
(docs/decisions/0035-outputs.md): every key there, of its type, and no other. What deviates
ends the reading with a word about it. Each trace becomes one line of what a script of an
analysis would take from it.
"""

import collections
import ipaddress
import json
import math
import sys

NUMBER = (int, float)
INFO = {"Version": str, "Conf": str, "Type": str}
DATA = {
    "TransportProtocol": str, "TargetIP": str, "TargetPort": int, "LocalIP": str, "LocalPort": int,
    "Service": str, "IPResolution": str, "Hops": list, "RttsAvg": list, "RttsVar": list,
    "MaxTtl": int, "BorderDistance": int, "Iterations": int,
    "MaxConsecutiveMissingHops": int, "ReachedMaxConsecutiveMissingHops": bool,
    "ProbingAlgorithm": str, "StartWithEmptyPacket": bool, "InterProbeTime": int, "InterIterationTime": int,
    "Timeout": int, "FlowTimeout": int, "ReachedFlowTimeout": bool, "FlowEnded": bool, "ReachedBorderRouter": bool,
    "TsStart": int, "TsEnd": int, "HopIPs": list, "Rtts": list,
}
ALGORITHMS = ("packetbypacket", "hopbyhop", "concurrent", "adaptive")
YEAR_2020, YEAR_2100 = 1577836800000, 4102444800000  # Unix ms


def want(so, what):
    if not so:
        raise ValueError(what)


def is_a(value, kind):
    """True and False are integers to Python, and are none to JSON."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def once(pairs):
    keys = [key for key, _ in pairs]
    want(len(keys) == len(set(keys)), f"a key comes twice: {keys}")
    return dict(pairs)


def typed(obj, kinds, what):
    want(isinstance(obj, dict), f"{what} is no object")
    want(set(obj) == set(kinds), f"{what}: missing {set(kinds) - set(obj)}, unknown {set(obj) - set(kinds)}")
    for key, kind in kinds.items():
        want(is_a(obj[key], kind), f"{what}.{key} is {obj[key]!r}, not {kind.__name__}")


def lists(data):
    n = data["BorderDistance"]
    for key in ("Hops", "RttsAvg", "RttsVar", "HopIPs", "Rtts"):
        want(len(data[key]) == n, f"{key} has {len(data[key])} entries, BorderDistance is {n}")
    for i, (hop, avg, var, ips, rtts) in enumerate(zip(*(data[k] for k in ("Hops", "RttsAvg", "RttsVar", "HopIPs", "Rtts")))):
        where = f"hop {i + 1}"
        want(is_a(hop, str) and is_a(avg, NUMBER) and is_a(var, NUMBER), f"{where}: types")
        want(is_a(ips, list) and is_a(rtts, list), f"{where}: no lists")
        want(len(ips) == len(rtts), f"{where}: {len(ips)} addresses, {len(rtts)} times")
        want(all(is_a(r, NUMBER) and 0 <= r <= data["Timeout"] for r in rtts), f"{where}: times {rtts}")
        for ip in ips:
            want(str(ipaddress.ip_address(ip)) == ip, f"{where}: address {ip}")
            want(ip != data["TargetIP"], f"{where}: the destination")
        if not ips:
            want(hop == "" and avg == 0 and var == 0, f"{where}: silent, yet {hop!r} {avg} {var}")
            continue
        votes = collections.Counter(ips)
        want(votes[hop] == max(votes.values()), f"{where}: {hop!r} of {ips}")
        mean = math.fsum(rtts) / len(rtts)
        spread = math.fsum(r * r for r in rtts) / len(rtts) - mean * mean
        want(math.isclose(avg, mean, rel_tol=1e-9), f"{where}: average {avg} of {rtts}")
        want(math.isclose(var, spread, rel_tol=1e-3, abs_tol=1e-6), f"{where}: variance {var} of {rtts}")


def read(line):
    doc = json.loads(line, object_pairs_hook=once, parse_constant=lambda c: want(False, f"{c} is no JSON"))
    typed(doc, {"Info": dict, "Data": dict}, "the line")
    typed(doc["Info"], INFO, "Info")
    data = doc["Data"]
    typed(data, DATA, "Data")
    want(doc["Info"]["Type"] == "ServiceTraceroute", "Info.Type")
    want(data["TransportProtocol"] in ("tcp", "udp"), "TransportProtocol")
    want(data["ProbingAlgorithm"] in ALGORITHMS, "ProbingAlgorithm")
    for ip, port in ((data["LocalIP"], data["LocalPort"]), (data["TargetIP"], data["TargetPort"])):
        want(str(ipaddress.ip_address(ip)) == ip and 0 < port < 65536, f"{ip} {port}")
    want(0 <= data["BorderDistance"] <= data["MaxTtl"] <= 255, "BorderDistance")
    want(YEAR_2020 < data["TsStart"] <= data["TsEnd"] < YEAR_2100, "times")
    ends = [key for key in ("ReachedMaxConsecutiveMissingHops", "ReachedFlowTimeout", "FlowEnded", "ReachedBorderRouter") if data[key]]
    want(len(ends) <= 1, f"ended by {ends}")
    lists(data)
    show = lambda texts: ",".join(text or "*" for text in texts)
    return " ".join([
        data["TransportProtocol"], data["LocalIP"], str(data["LocalPort"]), data["TargetIP"], str(data["TargetPort"]),
        f'conf={doc["Info"]["Conf"]}', f'service={data["Service"]}', f'name={data["IPResolution"]}', f'algorithm={data["ProbingAlgorithm"]}',
        f'distance={data["BorderDistance"]}', f'hops={show(data["Hops"])}', f'answers={show(str(len(r)) for r in data["Rtts"])}',
        f'start={data["TsStart"]}', f'end={data["TsEnd"]}', f'ended={show(ends)}',
    ])


def main():
    for number, line in enumerate(sys.stdin, 1):
        try:
            print(read(line))
        except (ValueError, KeyError) as err:
            sys.exit(f"line {number}: {err}")


main()

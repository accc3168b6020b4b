#!/usr/bin/env python3
"""Verifies audit logs of postern, and holds them against heads that left the machine.

Written by the description in RECORDS.md, "The chain", and by nothing else: it shares no code with postern, so that
neither has to be believed alone. Python 3.8 or newer, its standard library only.

    python3 verify.py audit.jsonl.1 audit.jsonl
    journalctl -o json SYSLOG_IDENTIFIER=postern | python3 verify.py --anchors /dev/stdin audit.jsonl.1 audit.jsonl

Exit status: 0 whole, 1 broken, 2 a file could not be read, the usage was wrong or no head counts, 3 a head contradicts
the log.
"""

import argparse
import hashlib
import json
import re
import sys

NUMBER = "[0-9]{1,20}"
ZEROS = "0" * 64
LONGEST = 256 * 1024

# A record's line without its newline: fixed at both ends, no control character between.
RECORD = re.compile(
    rb'\{"@timestamp":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z",'
    rb'"event":\{"sequence":([1-9][0-9]{0,19}),([^\x00-\x1f]*)"previous":"([0-9a-f]{64})"\}\}'
)
TORN = re.compile(rb'"torn":\{"bytes":([0-9]{1,20}),"sha256":"([0-9a-f]{64})"\},\Z')
HEAD = re.compile(rf"audit head: record ({NUMBER}), sha256 ([0-9a-f]{{64}}), boot .*?, log (.*)", re.DOTALL)
SYSLOG = re.compile(r".*?postern\[[0-9]+\]: (.*)", re.DOTALL)


class Doubt(Exception):
    """Why a log is not known to be what was written."""

    def __init__(self, status, verdict, text, **more):
        super().__init__(text)
        self.status = status
        self.verdict = dict(verdict=verdict, **more)


def broken(place, why):
    return Doubt(1, "broken", f"broken: {place[0]}:{place[1]}: {why}", file=place[0], line=place[1])


class Record:
    """What the chain needs of a line."""

    def __init__(self, line, match):
        self.line = line
        self.sequence = int(match[1])
        self.previous = match[3].decode()
        self.hash = hashlib.sha256(line).hexdigest()
        self.opens = match[2].startswith(b'"action":"log-opened"')
        torn = TORN.search(match[2])
        self.torn = (int(torn[1]), torn[2].decode()) if torn else None

    @staticmethod
    def of(line):
        """The record that a line is, or None."""
        line = line[:-1] if line.endswith(b"\n") else line
        match = RECORD.fullmatch(line) if len(line) <= LONGEST else None
        return Record(line, match) if match and int(match[1]) < 1 << 64 else None

    def is_json(self):
        """Whether a JSON reader sees what stands at the fixed places."""
        try:
            record = json.loads(self.line)
            # What Python takes beyond JSON: NaN, numbers without a value, halves of characters.
            json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
            ours = record["postern"]
            torn = (ours["torn"]["bytes"], ours["torn"]["sha256"]) if "torn" in ours else None
            return (record["event"]["sequence"], ours["previous"], torn) == (self.sequence, self.previous, self.torn)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def user(self):
        """The broker's user, by the first record of a file."""
        try:
            return int(json.loads(self.line)["user"]["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def lines(file):
    """Each line with its number. One that is too long for a record comes in parts, the later ones as None and the part."""
    number, inside = 0, False
    try:
        with open(file, "rb") as source:
            while line := source.readline(LONGEST + 1):
                number += not inside
                yield None if inside else number, line
                inside = not line.endswith(b"\n")
    except OSError as error:
        raise Doubt(2, "unreadable", f"cannot read {file}: {error.strerror}") from error


def records(files):
    """Each record that follows the one before it; raises Doubt at the first that does not."""
    before, where, rest, rest_bytes, rest_begins = None, None, hashlib.sha256(), 0, None
    for file in files:
        for number, line in lines(file):
            place = (file, number)
            record = Record.of(line) if number else None
            if record is None:
                rest.update(line)
                rest_bytes += len(line)
                rest_begins = rest_begins or place
                continue
            if rest_bytes > 0 and record.torn != (rest_bytes, rest.hexdigest()):
                raise broken(rest_begins, "no record, and the next one does not account for it")
            if before is None:
                if record.sequence == 1 and record.previous != ZEROS:
                    raise broken(place, "the first record of all names one before it")
            else:
                if record.torn and rest_bytes == 0:
                    raise broken(place, "accounts for torn bytes that are not there")
                if record.sequence != before.sequence + 1 or record.previous != before.hash:
                    raise broken(place, f"does not follow record {before.sequence}, which stands before it")
                if record.opens and not before.is_json():
                    raise broken(where, "is no JSON")
            before, where, rest, rest_bytes, rest_begins = record, place, hashlib.sha256(), 0, None
            yield record
    if rest_begins:
        raise broken(rest_begins, "no record, and no later one accounts for it")
    if before is None:
        raise broken((files[0], 1), "there is no record")
    if not before.is_json():
        raise broken(where, "is no JSON")


def text_of(value):
    """A field of a journal: text, or the bytes of what journald takes for none."""
    if isinstance(value, list):
        try:
            return bytes(value).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return None
    return value if isinstance(value, str) else None


def head_of(line):
    """(record, hash, log, sender) of a line that is a head: the sender is a user id, "syslog" or None."""
    if not line.startswith(b"{"):
        tagged = SYSLOG.fullmatch(line.decode("utf-8", "replace").rstrip("\n"))
        head = tagged and HEAD.fullmatch(tagged[1])
        return (int(head[1]), head[2], head[3], "syslog") if head and int(head[1]) < 1 << 64 else None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    field = lambda name: text_of(entry.get(name)) or ""
    sender = int(field("_UID")) if re.fullmatch(NUMBER, field("_UID")) else None
    number, digits, log = field("POSTERN_SEQUENCE"), field("POSTERN_HASH"), field("POSTERN_LOG")
    if re.fullmatch(NUMBER, number) and int(number) < 1 << 64 and re.fullmatch("[0-9a-f]{64}", digits) and log:
        return int(number), digits, log, sender
    head = HEAD.fullmatch(field("MESSAGE")) if field("SYSLOG_IDENTIFIER") == "postern" else None
    return (int(head[1]), head[2], head[3], sender) if head and int(head[1]) < 1 << 64 else None


def verify(files, anchors=(), sender=None, log=None):
    """What can be said of a log, or Doubt."""
    heads = sorted(
        ((*head, f"{file}:{number}") for file in anchors for number, line in lines(file)
         if number and (head := head_of(line))),
        key=lambda head: head[0],
    )
    wanted = {head[0] for head in heads}
    seen, users, first, last, count = {}, set() if sender is None else {sender}, None, None, 0
    for record in records(files):
        first, last, count = first or record, record, count + 1
        if record.sequence in wanted:
            seen[record.sequence] = record.hash
        if record.opens and sender is None:
            users.add(record.user())
    said = dict(verdict="whole", records=count, first=first.sequence, last=last.sequence, head=last.hash)
    if not anchors:
        return said
    counts = lambda head: head[3] == "syslog" or (head[3] is not None and head[3] in users)
    logs = {head[2] for head in heads if counts(head)}
    if log is None and len(logs) > 1:
        logs = logs.intersection(files)
        if not logs:
            raise Doubt(2, "several-logs", "the anchors are of several logs; say with --log which of them it is")
    said_log, log = log, log or min(logs, default=None)
    agree, older, ignored, other_logs, agreed = 0, 0, 0, 0, None
    for head in heads:
        number, digits, of, _, place = head
        if log is not None and of != log:
            other_logs += 1
        elif not counts(head):
            ignored += 1
        elif number < first.sequence:
            older += 1
        elif number > last.sequence:
            raise Doubt(3, "cut", f"cut: the log ends with record {last.sequence}, but the head of record {number} "
                        f"({place}) was sent", record=number)
        elif seen[number] != digits:
            raise Doubt(3, "rewritten", f"rewritten: behind record {agreed or 0}, up to which heads agree, and not "
                        f"behind record {number}, whose head ({place}) is another", record=number)
        else:
            agree, agreed = agree + 1, number
    if agree == 0:
        raise Doubt(2, "no-head", f"no head counts ({older} of older records than were given, {ignored} by other users, "
                    f"{other_logs} of other logs)")
    if sender is None and any(type(user) is int and user not in users and said_log in (None, of)
                              for _, _, of, user, _ in heads):
        raise Doubt(2, "strangers", "users other than the one that the log names sent heads, and only the log says who its "
                    "broker is: say with --sender which user that was")
    return dict(said, agree=agree, older=older, ignored=ignored, other_logs=other_logs)


def batch():
    """Many logs for one start of Python: a JSON object of verify()'s arguments per line, an answer to each."""
    for line in sys.stdin:
        try:
            answer = verify(**json.loads(line))
        except Doubt as doubt:
            answer = dict(doubt.verdict, text=str(doubt))
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description="Verifies an audit log of postern.")
    parser.add_argument("--anchors", action="append", default=[], metavar="FILE",
                        help="heads that left the machine: journalctl -o json, or lines of a syslog file")
    parser.add_argument("--sender", type=int, metavar="UID", help="in a journal, only heads by this user count")
    parser.add_argument("--log", metavar="PATH", help="only heads of the log with this path count")
    parser.add_argument("--batch", action="store_true", help="read many such arguments from standard input, as JSON")
    parser.add_argument("files", nargs="*", metavar="FILE", help="log files, oldest first")
    options = parser.parse_args()
    if options.batch:
        return batch()
    if not options.files:
        parser.error("which log?")
    try:
        said = verify(options.files, options.anchors, options.sender, options.log)
    except Doubt as doubt:
        print(doubt, file=sys.stderr)
        return doubt.status
    print("whole: {records} records ({first} to {last})\nhead: {last} {head}".format(**said))
    if options.anchors:
        print("anchors: {agree} heads agree; {older} of older records than were given; ignored: {ignored} by other "
              "users, {other_logs} of other logs".format(**said))
    return 0


if __name__ == "__main__":
    sys.exit(main())

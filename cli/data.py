"""The command `aludel data`: token stores are made, described, checked."""

from pathlib import Path

from .parsing import Parser, subcommand


def data(args: list[str]) -> int:
    """Token stores."""
    usage = (
        "usage: aludel data build SOURCE ... [--tokenizer SPEC]   tokenise, or go on with it\n"
        "       aludel data info STORE                            what a store holds\n"
        "       aludel data check STORE ...                       verify its checksums"
    )
    parsers = {"build": data_build, "info": data_info, "check": data_check}
    return subcommand("data", parsers, usage, args)


def data_build(args: list[str]) -> int:
    """Make the token stores of sources."""
    parser = Parser(
        "aludel data build",
        description="Tokenise sources into stores, where pretrain and eval find them. A build "
        "that was stopped goes on; a corpus that grew is not tokenised again.",
        allow_abbrev=False,
    )
    parser.add_argument("data", metavar="SOURCE", nargs="+", help="text:PATH, jsonl:PATH, ...")
    parser.add_argument(
        "--tokenizer",
        default="bpe:4096",
        help="char, byte, bpe:SIZE, a tokenizer.json or a run folder's (bpe:4096)",
    )
    parser.add_argument(
        "--split", action="append", choices=("train", "validation", "all"), help="(the first two)"
    )
    parser.add_argument("--text-field", default="text", help="of a record, what holds its text")
    parser.add_argument("--decode-errors", choices=("strict", "replace"), default="strict")
    parser.add_argument("--workers", type=int, help="processes (as many as there are cores)")
    options = parser.parse(args)
    from ..train.stores import build, describe

    gap = ""
    for store, source, split in build(
        options.data,
        options.tokenizer,
        splits=options.split or ["validation", "train"],
        text_field=options.text_field,
        decode_errors=options.decode_errors,
        workers=options.workers,
    ):
        lines = describe(store, [("source", source), ("split", split)])
        print(gap + "\n".join(lines), flush=True)
        gap = "\n"
    return 0


def data_info(args: list[str]) -> int:
    """What a store holds."""
    parser = Parser("aludel data info", description="Describe a token store.", allow_abbrev=False)
    parser.add_argument("store", help="its folder")
    options = parser.parse(args)
    from ..train.stores import describe

    print("\n".join(describe(Path(options.store).expanduser())))
    return 0


def data_check(args: list[str]) -> int:
    """Verify the checksums of stores."""
    parser = Parser(
        "aludel data check",
        description="Read all of a token store and verify its checksums.",
        allow_abbrev=False,
    )
    parser.add_argument("stores", metavar="STORE", nargs="+", help="its folder")
    options = parser.parse(args)
    from ..data import check_store

    for store in options.stores:
        meta = check_store(Path(store).expanduser())
        print(f"whole: {len(meta['shards']):,} shards, {meta['tokens']:,} tokens")
        print(store)
    return 0

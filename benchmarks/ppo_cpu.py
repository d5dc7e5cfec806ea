"""PPO on a CPU: whole iterations of aludel against PyTorch and `transformers`, in one run.

64 prompts of 32 tokens, 64 new tokens, no token that ends an answer; policy, critic, reference and
reward model each a GPT-2 of 6 layers and width 384 with a vocabulary of 4,096, in float32. An
iteration samples, scores (reference, values, reward), and updates policy and critic by the clipped
losses with AdamW, in one batch, 1 and 4 times over.

The rival is the same work done well: `transformers`' GPT-2 with fused attention and cache, its
log-probs from the logits that sampling gave, hidden states of the answers alone going through the
vocabulary, the networks compiled by `torch.compile` where that is faster, the best number of
threads. The arithmetic's floor is the matrix products' FLOPs at this machine's measured peak.

    python benchmarks/ppo_cpu.py [--epochs 1 4] [--rounds 3] [--out FILE]
"""

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
from compare import alternate, cores, spread, table, write_json
from iterations import (
    CLIP,
    GAMMA,
    KL,
    LAM,
    PHASES,
    RATE,
    Sizes,
    iteration_of,
    matrix_flops,
    prompts_of,
)

from aludel.memory import keep_memory, use_large_pages
from aludel.model import DecoderConfig
from aludel.train.hardware import measured_cpu_flops

ROWS, PROMPT, NEW, VOCAB = 64, 32, 64, 4096
LENGTH = PROMPT + NEW
MODEL = DecoderConfig(
    vocab_size=VOCAB,
    layers=6,
    width=384,
    heads=6,
    context=128,
    norm="layernorm",
    position="learned",
    activation="gelu_tanh",
    bias=True,
    tied=True,
)
SIZES = Sizes(ROWS, PROMPT, NEW)


def theirs(epochs: int, threads: int, compiled: bool) -> Callable[[], dict[str, float]]:
    """The same by PyTorch."""
    import torch
    from torch.nn.functional import log_softmax
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.set_num_threads(threads)
    settings = GPT2Config(
        vocab_size=VOCAB,
        n_layer=MODEL.layers,
        n_embd=MODEL.width,
        n_head=MODEL.heads,
        n_positions=MODEL.context,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )

    class Scalar(torch.nn.Module):
        """A decoder with a number for each token."""

        def __init__(self) -> None:
            super().__init__()
            self.body = GPT2Model(settings)
            self.head = torch.nn.Linear(MODEL.width, 1)

        def forward(self, tokens):
            hidden = self.body(tokens, use_cache=False).last_hidden_state
            return self.head(hidden)[..., 0]

    class LogProbs(torch.nn.Module):
        """Log-probs of the answers' tokens: only their hidden states meet the vocabulary."""

        def __init__(self, model) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens):
            hidden = self.model.transformer(tokens, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, PROMPT - 1 : -1])
            chosen = tokens[:, PROMPT:, None]
            return logits.gather(-1, chosen)[..., 0] - torch.logsumexp(logits, dim=-1)

    policy = GPT2LMHeadModel(settings).eval()
    reference = GPT2LMHeadModel(settings).eval()
    reference.load_state_dict(policy.state_dict())
    critic, judge = Scalar(), Scalar()
    logp, ref_logp = LogProbs(policy), LogProbs(reference)
    if compiled:
        logp, ref_logp, value, score = map(torch.compile, (logp, ref_logp, critic, judge))
    else:
        value, score = critic, judge
    optimizer = torch.optim.AdamW(
        [*policy.parameters(), *critic.parameters()], lr=RATE, eps=1e-5, fused=True
    )
    count = 0

    def iteration() -> dict[str, float]:
        nonlocal count
        torch.set_num_threads(threads)
        marks = [time.perf_counter()]
        prompts = torch.from_numpy(prompts_of(SIZES, VOCAB, count)).long()
        count += 1
        with torch.inference_mode():
            out = policy.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=NEW,
                do_sample=True,
                top_k=0,
                use_cache=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
            tokens = out.sequences
            old = torch.stack(
                [
                    log_softmax(logits, dim=-1).gather(-1, tokens[:, PROMPT + t, None])[:, 0]
                    for t, logits in enumerate(out.logits)
                ],
                dim=1,
            )
        tokens, old = tokens.clone(), old.clone()
        marks.append(time.perf_counter())
        with torch.no_grad():
            rewards = -KL * (old - ref_logp(tokens))
            old_values = value(tokens)[:, PROMPT - 1 : -1].clone()
            rewards[:, -1] += score(tokens)[:, -1]
            advantages = torch.zeros_like(rewards)
            last = torch.zeros(ROWS)
            for t in reversed(range(NEW)):
                following = old_values[:, t + 1] if t + 1 < NEW else torch.zeros(ROWS)
                delta = rewards[:, t] + GAMMA * following - old_values[:, t]
                last = delta + GAMMA * LAM * last
                advantages[:, t] = last
            returns = advantages + old_values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        marks.append(time.perf_counter())
        for _ in range(epochs):
            ratio = torch.exp(logp(tokens) - old)
            clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
            lost = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
            now = value(tokens)[:, PROMPT - 1 : -1]
            near = old_values + torch.clamp(now - old_values, -CLIP, CLIP)
            error = torch.maximum((now - returns) ** 2, (near - returns) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            (lost + 0.05 * error).backward()
            torch.nn.utils.clip_grad_norm_(
                [*policy.parameters(), *critic.parameters()], 1.0, foreach=True
            )
            optimizer.step()
        marks.append(time.perf_counter())
        pairs = zip(PHASES, marks, marks[1:], strict=False)
        return {phase: end - begin for phase, begin, end in pairs}

    return iteration


def best_rival(epochs: int) -> tuple[str, Callable[[], dict[str, float]]]:
    """(its settings, the fastest of the rival's ways)."""
    tried = {}
    for threads in sorted({1, cores()}):
        for compiled in (False, True):
            iteration = theirs(epochs, threads, compiled)
            iteration()  # warm up, compile
            begin = time.perf_counter()
            iteration()
            seconds = time.perf_counter() - begin
            name = f"{threads} threads{', compiled' if compiled else ''}"
            print(f"  PyTorch, {name}: {ROWS / seconds:.2f} samples/s", flush=True)
            tried[name] = (seconds, iteration)
    best = min(tried, key=lambda name: tried[name][0])
    return best, tried[best][1]


def measure(epochs: int, rounds: int) -> dict:
    """Both, in turns."""
    name, rival = best_rival(epochs)
    phases: dict[str, list[dict[str, float]]] = {"aludel": [], f"PyTorch ({name})": []}
    functions = {}
    for path, iteration in zip(phases, (iteration_of(MODEL, SIZES, epochs), rival), strict=True):
        functions[path] = functools.partial(
            lambda path, iteration: phases[path].append(iteration()), path, iteration
        )
    taken = alternate(functions, rounds, warm_up=2)
    speed = {path: spread([ROWS / s for s in seconds]) for path, seconds in taken.items()}
    shares = {}
    for path, found in phases.items():
        kept = found[-rounds:]
        shares[path] = {one: float(np.median([f[one] for f in kept])) for one in PHASES}
    mine, other = (value["median"] for value in speed.values())
    peak = measured_cpu_flops()
    floor = {phase: flops / peak for phase, flops in matrix_flops(MODEL, SIZES, epochs).items()}
    return {
        "samples_per_second": speed,
        "seconds": shares,
        "floor_seconds": floor,
        "share_of_floor": sum(floor.values()) / sum(shares["aludel"].values()),
        "ratio": mine / other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="where the figures go as JSON")
    args = parser.parse_args()
    use_large_pages()
    keep_memory()

    figures = {}
    for epochs in args.epochs:
        print(f"{epochs} epochs:", flush=True)
        found = figures[f"{epochs}_epochs"] = measure(epochs, args.rounds)
        rows = []
        for path, values in found["samples_per_second"].items():
            seconds = found["seconds"][path]
            whole = sum(seconds.values())
            shares = {f"{one}, s": seconds[one] for one in PHASES}
            rows.append({"samples/s": path, **values, **shares, "whole, s": whole})
        floor = found["floor_seconds"]
        rows.append(
            {
                "samples/s": "floor",
                **dict.fromkeys(("median", "min", "max"), ROWS / sum(floor.values())),
                **{f"{one}, s": floor[one] for one in PHASES},
                "whole, s": sum(floor.values()),
            }
        )
        print(table(rows))
        print(
            f"ratio {found['ratio']:.2f}; {found['share_of_floor']:.0%} of the floor\n", flush=True
        )
    if args.out:
        write_json(args.out, {"rounds": args.rounds, **figures})
        print(args.out)


if __name__ == "__main__":
    main()

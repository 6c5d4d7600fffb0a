"""Completions from a model behind an OpenAI-compatible endpoint."""

from collections.abc import Callable, Sequence
from typing import Any

from preftune.content_cache import ContentCache
from preftune.judges.asking import ask_all
from preftune.judges.endpoint import Endpoint, Reply
from preftune.judges.ledger import Ledger
from preftune.own_pairs.sampling import seed_of
from preftune.pairs_schema import OpenAIGenerator, Pairs

Row = dict[str, Any]


def request_of(settings: Pairs, number: int) -> Row:
    """The parameters of the requests for the completions with one number.

    The seed is the number's own. It is part of what a reply is kept by even where the endpoint takes none, so that
    two completions of one prompt are two requests.
    """
    request = {
        "temperature": settings.temperature(number),
        "max_tokens": settings.max_new_tokens,
        "seed": seed_of(settings.seed, number),
    }
    return request if settings.top_p == 1 else {**request, "top_p": settings.top_p}


def ask(
    prompts: Sequence[Row], settings: Pairs, cache: ContentCache, tell: Callable[[str], None]
) -> tuple[list[Reply], Ledger]:
    """Asks for every completion, prompt by prompt: a budget that ends early leaves whole prompts.

    Args:
        prompts: Rows of prompts.jsonl.
        settings: The recipe's section, with a generator of kind openai.
        cache: What was replied before.
        tell: Called with each line for the user.

    Returns:
        The replies, in the order of the prompts and then of their numbers; and what it took.

    Raises:
        UserError: If the endpoint refuses key, model or request.
        StepError: If nothing listens at the address.
    """
    generator = settings.generator
    assert isinstance(generator, OpenAIGenerator)
    ledger = Ledger(generator.max_requests, generator.max_cost, generator.prompt_price, generator.completion_price)
    endpoint = Endpoint(generator, cache, ledger, tell)

    async def one(item: tuple[Row, int]) -> Reply:
        prompt, number = item
        reply = await endpoint.reply(prompt["prompt"], request_of(settings, number))
        if reply.error is not None:
            ledger.errors[reply.error] += 1
        return reply

    items = [(prompt, number) for prompt in prompts for number in range(settings.completions)]
    replies = ask_all(endpoint, "completed answers", one, items, generator.concurrency, ledger, tell)
    if ledger.stopped:
        tell(f"the generator was stopped ({ledger.stopped}): the rest has no answer; a new run goes on from here")
    return replies, ledger

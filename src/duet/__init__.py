"""Profiles of users and items in plain language, for recommenders; and the reward that trains them."""

from duet._catalogue import CatalogueReward
from duet._choice import NextItemReward
from duet._contrastive import ContrastiveReward
from duet._cues import CueExtractor
from duet._embedder import AsyncOpenAIEmbedder, Embedder, HTTPEmbedder
from duet._endpoint import AsyncOpenAIEndpoint, Endpoint, HTTPEndpoint
from duet._errors import (
    BudgetExceeded,
    CompletionError,
    ConfigurationError,
    DuetError,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    IncompleteStream,
    LedgerError,
    MalformedCompletion,
    MissingExtraError,
    RatingError,
    RecordError,
    TruncatedCompletion,
)
from duet._events import GenerationDone, GenerationEnd, ProfileEvent, SectionDelta, SectionDone, TextDelta
from duet._leakage import LeakageReward
from duet._ledger import Ledger
from duet._limits import Budget, LimitedEndpoint
from duet._parser import SectionParser, parse_profile, parse_rating
from duet._profiler import JointProfiler, ProfileStream
from duet._prompts import CuePrompt, JointPrompt, Message, RatingPrompt, choice_prompt, quote
from duet._ranking import rank
from duet._recommender import EmbeddingRecommender, LLMRecommender, Recommender, label_probabilities
from duet._records import Example, Interaction, Item, RatingScale, User
from duet._results import (
    Candidate,
    Completion,
    Cues,
    JointProfile,
    Outcome,
    Profile,
    Rating,
    Reward,
    TokenLogprob,
    Usage,
)
from duet._reward import RewardEnv
from duet._schema import ProfileSchema
from duet._settings import Deadlines, EndpointSettings, Engine, Sampling
from duet._terms import LengthReward, RatingReward, RewardTerm, SentimentReward, TermScore

__all__ = [
    "AsyncOpenAIEmbedder",
    "AsyncOpenAIEndpoint",
    "Budget",
    "BudgetExceeded",
    "Candidate",
    "CatalogueReward",
    "Completion",
    "CompletionError",
    "ConfigurationError",
    "ContrastiveReward",
    "CueExtractor",
    "CuePrompt",
    "Cues",
    "Deadlines",
    "DuetError",
    "Embedder",
    "EmbeddingRecommender",
    "Endpoint",
    "EndpointError",
    "EndpointRejected",
    "EndpointSettings",
    "EndpointUnavailable",
    "Engine",
    "Example",
    "GenerationDone",
    "GenerationEnd",
    "HTTPEmbedder",
    "HTTPEndpoint",
    "IncompleteStream",
    "Interaction",
    "Item",
    "JointProfile",
    "JointProfiler",
    "JointPrompt",
    "LLMRecommender",
    "LeakageReward",
    "Ledger",
    "LedgerError",
    "LengthReward",
    "LimitedEndpoint",
    "MalformedCompletion",
    "Message",
    "MissingExtraError",
    "NextItemReward",
    "Outcome",
    "Profile",
    "ProfileEvent",
    "ProfileSchema",
    "ProfileStream",
    "Rating",
    "RatingError",
    "RatingPrompt",
    "RatingReward",
    "RatingScale",
    "Recommender",
    "RecordError",
    "Reward",
    "RewardEnv",
    "RewardTerm",
    "Sampling",
    "SectionDelta",
    "SectionDone",
    "SectionParser",
    "SentimentReward",
    "TermScore",
    "TextDelta",
    "TokenLogprob",
    "TruncatedCompletion",
    "Usage",
    "User",
    "choice_prompt",
    "label_probabilities",
    "parse_profile",
    "parse_rating",
    "quote",
    "rank",
]

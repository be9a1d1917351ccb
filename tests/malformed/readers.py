"""Every reader of the package, with valid files: the one table of the tests and the nightly run."""

from tests.malformed.dataset_readers import DATASET_READERS
from tests.malformed.model_readers import MODEL_READERS
from tests.malformed.result_readers import RESULT_READERS
from tests.malformed.store_readers import STORE_READERS
from tests.malformed.table import Reader

READERS: tuple[Reader, ...] = (*DATASET_READERS, *STORE_READERS, *RESULT_READERS, *MODEL_READERS)

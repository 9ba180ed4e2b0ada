"""The settings of an extraction: how many views, drawn how, and what is kept of them."""

from pydantic import Field

from kdcache.errors import ConfigError, TeacherError
from kdcache.extract.job import Job
from kdcache.images import ImageIndex, ImageSet
from kdcache.precision import Precision, Wanted
from kdcache.settings import Settings
from kdcache.store import Dtype
from kdcache.store.layout import ARRAYS
from kdcache.teachers import Teacher
from kdcache.views import get_policy, get_renderer


class Extraction(Settings):
    """What is asked of a teacher, whoever it is and whatever the images are.

    Raises:
        ConfigError: there is no such policy or array, or the policy draws views in sets, and the
            last is not whole.
    """

    num_views: int = Field(default=10, ge=1)
    """Of each image."""
    policy: str = "weak"
    """How views are drawn: one of `available_policies`."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Of the views."""
    arrays: tuple[str, ...] | None = None
    """Which of `feature` and `embedding` to keep; None keeps all that the teacher gives."""
    dtype: Dtype = "float16"
    """Of what is kept."""
    precision: Wanted = "auto"
    """Of the teacher's forward pass."""
    batch_size: int = Field(default=64, ge=1)
    """Views that the teacher sees at once."""

    def model_post_init(self, _context: object) -> None:
        """Refuse what no teacher can be asked."""
        self._check_arrays()
        self._check_whole_sets()

    def check(self, teacher: Teacher) -> None:
        """Refuse views that a teacher cannot be shown, before any image is read.

        Raises:
            TeacherError: the teacher, perhaps a transformer, is tied to one size, and cannot take
                the small crops of the policy.
        """
        policy, size = get_policy(self.policy), teacher.image_size
        for side in {policy.side(view, size) for view in range(policy.views_in_set)} - {size}:
            try:
                teacher.backbone.measure(side)
            except ConfigError as error:
                raise TeacherError(
                    f"the small crops of `{self.policy}` are not for this teacher: {error}",
                    hint="choose a teacher that takes images of any size, such as timm:resnet50, "
                    "or views of one size: --policy swav",
                ) from error

    def job(
        self, images: ImageSet, index: ImageIndex, teacher: Teacher, precision: Precision
    ) -> Job:
        """The job of extracting from these images.

        Args:
            precision: the wanted one as the device settles it.
        """
        return Job(
            images=images,
            index=index,
            teacher=teacher,
            policy=get_policy(self.policy),
            seed=self.seed,
            num_views=self.num_views,
            renderer=get_renderer(),
            dtype=self.dtype,
            precision=precision,
            batch_size=self.batch_size,
            arrays=self.arrays,
        )

    def _check_arrays(self) -> None:
        if self.arrays == ():
            raise ConfigError("no array is to be kept", hint=f"name some of {', '.join(ARRAYS)}")
        for name in self.arrays or ():
            if name not in ARRAYS:
                raise ConfigError(
                    f"a teacher gives no `{name}`", hint=f"there are: {', '.join(ARRAYS)}"
                )

    def _check_whole_sets(self) -> None:
        """A method that learns from small crops needs all of a set."""
        size = get_policy(self.policy).views_in_set
        if self.num_views % size:
            below, above = (self.num_views // size * size + more for more in (0, size))
            raise ConfigError(
                f"`{self.policy}` draws views in sets of {size}, a large crop and {size - 1} small "
                f"ones; `{self.num_views}` views are no whole number of sets",
                hint=" or ".join(f"--views {number}" for number in (below, above) if number),
            )

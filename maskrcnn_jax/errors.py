"""The exceptions for wrong input, and the table of error codes.

docs/error_codes.md is generated from the table:

  python -m maskrcnn_jax.explain > docs/error_codes.md
"""

import re
import sys
from typing import NamedTuple
import unicodedata

# Characters without a picture of their own that names in some scripts need: the
# joiner and the non-joiner of Persian, Indic scripts and emoji.
_JOINERS = '\u200c\u200d'
# Characters of the longest line that is printed. Names of a hostile file may
# have millions.
_LONGEST = 10_000


def printable(text: str) -> str:
  r"""Returns a text as one line that is safe to print.

  Names of classes and files come from other people. A control character in them
  could clear the terminal, change its title or colour, or begin a line that
  looks like one of this program. Such characters, line breaks, and those that
  reverse the direction of the text appear as escapes, such as '\x1b'. The end
  of a text that is far too long for a line is cut off.

  Args:
    text: Any text.
  """
  if len(text) > _LONGEST:
    text = text[: _LONGEST - 3] + '...'
  if text.isprintable():
    return text
  return ''.join(
    c
    if c.isprintable() or c in _JOINERS or unicodedata.category(c) == 'Zs'
    else c.encode('unicode_escape').decode()
    for c in text
  )


def print_lines(*lines: object) -> None:
  """Prints texts on stdout, each as one line that is safe to print."""
  for line in lines:
    print(printable(str(line)), flush=True)


class InputError(ValueError):
  """Wrong input: one line that names the fault, its place and the remedy.

  `main` prints the message without a traceback and exits with status 2. Any
  other exception is a failure while running and exits with status 1.
  """

  def __init__(self, message: object = ''):
    """Makes one line of the message that is safe to print: see `printable`."""
    super().__init__(printable(str(message)))


class DamagedCheckpoint(InputError):
  """A checkpoint cannot be read: it is damaged, or saving it was cut off."""


class SaveError(RuntimeError):
  """Saving failed; earlier checkpoints are unharmed."""


class Code(NamedTuple):
  """The explanation of an error code."""

  meaning: str  # a few words, used as a title and in the report of check_data
  cause: str  # when this program gives the code, and the usual reason
  remedy: str  # the steps that correct the input


# A: annotations, I: images, C: recipes, checkpoints, results and the machine.
# Scripts may look for a code, so a code never changes its meaning, and a new
# meaning gets a new number. `--fix` is an option of check_data.
CODES = {
  'A01': Code(
    'box without area',
    'A box has a width or height of 0 or less. Up to 1 % of such objects, or '
    'up to 5 if they are at most 5 %, are left out with a warning; more are '
    'an error.',
    'Draw the box again. `--fix` writes the box around the mask, or leaves out '
    'an object without a mask.',
  ),
  'A02': Code(
    'box outside of its image',
    'A box that reaches over the edge of its image is clipped, with a '
    'warning. An object whose box lies completely outside is left out; more '
    'than 1 % of such objects are an error, unless they are at most 5 objects '
    'and 5 %.',
    'Check that the annotations belong to these images. `--fix` clips the '
    'boxes, writes the box around the mask for a box that is outside, and '
    'leaves out the objects that are outside with their masks.',
  ),
  'A03': Code(
    'boxes given by their corners',
    'More than 20 % of the boxes reach over the edge of their images, and '
    'all boxes fit if they are read as (x1, y1, x2, y2).',
    'Write each box as (x, y, width, height); `--fix` does.',
  ),
  'A04': Code(
    'value that is not a finite number',
    'A coordinate, an area or a score is text, NaN or infinite; or an object '
    'has no box. An object without a box gets that around its mask, with a '
    'warning.',
    'Correct the number. `--fix` reads numbers from text and computes boxes '
    'and areas from masks; it leaves out an object that needs another number.',
  ),
  'A05': Code(
    'polygon with fewer than 6 numbers or an odd count',
    'A polygon is a list of at least three (x, y) pairs: an even count of at '
    'least 6 numbers. Any other polygon is left out with a warning, and the '
    'object is left out too if it has no other polygon. More than 1 % of '
    'such objects are an error, unless they are at most 5 objects and 5 %.',
    'Draw the outline again. `--fix` leaves the polygon out, or the object if '
    'it has no other polygon.',
  ),
  'A06': Code(
    'object without a mask',
    '`segmentation` is missing or empty. Up to 1 % of such objects, or up '
    'to 5 if they are at most 5 %, are left out with a warning; more are an '
    'error.',
    'Add the masks, or leave the objects out with `--fix`. To train a model '
    'without masks, give `--config.model.output=boxes`.',
  ),
  'A07': Code(
    'segmentation of another form',
    '`segmentation` is neither a list of polygons nor an RLE (run-length '
    'encoded mask). Often it is one flat list of numbers, a list of pairs '
    '`[x, y]`, or a list of RLEs.',
    'Put each polygon into a list of its own, `[[x1, y1, x2, y2, ...]]`, or '
    'write an RLE without a list around it; `--fix` does.',
  ),
  'A09': Code(
    'RLE that does not fit its image',
    'The size of a run-length encoded mask is not (height, width) of the '
    'image, or its counts do not add up to the number of pixels of the '
    'image. Often height and width are exchanged.',
    'Encode the mask again at the size of the image. `--fix` exchanges height '
    'and width if the box shows that they are exchanged, and decodes counts '
    "that are the text of Python's bytes; it leaves out other objects.",
  ),
  'A10': Code(
    'mask without a pixel',
    'A mask covers the centre of no pixel of the image: it is a line or a '
    'point, the object is smaller than a pixel, or the mask lies outside of '
    'the image. The object is used for training, but only with its box.',
    'Nothing needs to be done, unless these objects should have masks.',
  ),
  'A11': Code(
    'box and mask disagree',
    'A box and the smallest box around the mask of the same object overlap '
    'by less than half (IoU below 0.5). If this is so for more than 20 % of '
    'the objects, it is an error.',
    'Look at the contact sheet of check_data, and correct the boxes or '
    'the masks.',
  ),
  'A12': Code(
    'iscrowd missing or not 0 or 1',
    'A missing `iscrowd` is read as 0, with a warning; a value other than 0 '
    'and 1 is an error.',
    'Set `iscrowd` to 0 for a single object and to 1 for a crowd region. '
    '`--fix` adds 0 where it is missing.',
  ),
  'A13': Code(
    'category without id or name',
    'An entry of `categories` lacks an `id` (an integer or a string) or a '
    '`name` (a string). A name that is a number is taken as text, with a '
    'warning.',
    'Complete the entry. `--fix` writes 1 for 1.0, and a number as text if it '
    'is the name.',
  ),
  'A14': Code(
    'annotation of an unknown image or category',
    'The `image_id` of an annotation or a result is not in `images`, or its '
    '`category_id` is not in `categories`. Often one id is a string and the '
    'other a number.',
    'Correct the id. `--fix` writes an id of the other type, such as "7" for '
    '7, as the lists do, and leaves out other annotations.',
  ),
  'A15': Code(
    'category twice',
    'Two categories have the same id or the same name. A category without '
    'annotations that only groups others, as Roboflow writes it, is left out '
    'with a warning.',
    'Rename one of the two, or merge them in your annotation program.',
  ),
  'A16': Code(
    'background as a category',
    'A category is called background and has objects. Every pixel that no '
    'object covers is background already.',
    'Remove the category and its objects; `--fix` does.',
  ),
  'A17': Code(
    'image id twice',
    'Two images have the same id, so the image of an annotation is not clear.',
    'Give the images different ids and correct their annotations.',
  ),
  'A18': Code(
    'annotation ids that are missing or not unique',
    'Ids of annotations are missing, used twice, or 0, which the COCO API '
    'reads as "no match". This program numbers the annotations anew in '
    'memory.',
    'Nothing needs to be done for a training with this program. `--fix` '
    'writes new ids for other programs.',
  ),
  'A19': Code(
    'image without a usable id',
    'An entry of `images` is not a JSON object, or its id is neither a '
    'number nor a string.',
    'Correct the id, or leave the image out with `--fix`.',
  ),
  'A20': Code(
    'image twice',
    'Two entries name the same file, two files have the same content, or '
    'one image has two files of annotations. If one of the two is for '
    'training and the other for evaluation, it is an error.',
    'Leave one of the two out.',
  ),
  'A21': Code(
    'class tables differ',
    'The categories of the evaluation set are not those of the training '
    'set, or the splits of one data set or the sets of one training have '
    'different categories. Upper and lower case letters differ.',
    'Make the ids and names of `categories` equal in all files; the message '
    'lists the differences.',
  ),
  'A22': Code(
    'class without objects',
    'A category has no annotation. Its AP is printed as "n/a" and is not '
    'part of the mean.',
    'Nothing needs to be done; you may remove the category.',
  ),
  'A23': Code(
    'nothing to train on',
    'There are no categories, no images or no objects, or all of them '
    'were left out. The message says how many images are left after each '
    'step.',
    'Check that you gave the intended file, and correct the images and '
    'objects that were left out.',
  ),
  'A24': Code(
    'more objects in an image than slots',
    'An image has more objects than `config.data.max_objects`. Only the '
    'largest objects are used for training. If more than 5 % of all objects '
    'would be lost, it is an error.',
    'Set `--config.data.max_objects` to the number in the message, which '
    'needs more memory, or cut the images into tiles.',
  ),
  'A25': Code(
    'annotations missing, damaged or of another kind',
    'The file of annotations is missing, is damaged (for example, it is not '
    'JSON), or is of another kind: VIA, LabelMe, panoptic, captions, detection '
    'results.',
    'Correct the place that the message names, or give the instances file of '
    'COCO. `python -m maskrcnn_jax.convert_to_coco` converts VIA, LabelMe, '
    'CVAT, Label Studio, YOLO, Pascal VOC masks and other mask pictures.',
  ),
  'A26': Code(
    'area missing or wrong',
    'The `area` of an annotation is missing, or it is less than half or '
    'more than twice the number of pixels of the mask. A missing area is '
    'computed from the mask. The AP of small, medium and large objects depends '
    'on it.',
    'Correct the area; `--fix` does.',
  ),
  'A27': Code(
    'outline too long',
    'The outline of an object has more than 32,768 vertices, or the '
    'object has more than 32,767 polygons.',
    'Simplify the outline. `--fix` writes the mask as an RLE, or leaves the '
    'object out if even that is too long.',
  ),
  'A28': Code(
    'coordinates given as fractions',
    'Boxes or masks have no coordinate above 1: their coordinates are '
    'fractions of the size of the image, as YOLO has them. COCO has pixels.',
    'Multiply x by the width and y by the height of the image, in `bbox` and '
    'in `segmentation`. `--fix` does it for masks if many coordinates are '
    'such, and writes the boxes around them.',
  ),
  'A29': Code(
    'many crowd regions',
    'More than 20 % of the annotations, and more than 2, have `iscrowd` 1, '
    'which means a group of objects that are not drawn one by one. They are '
    'not trained on. Some '
    'programs write 1 for each mask that is an RLE.',
    'If each of these annotations is one object, set its `iscrowd` to 0.',
  ),
  'A30': Code(
    'same object several times',
    'Annotations of an image have the same class, box and mask, usually '
    'because files were merged twice or an annotation program saved an object '
    'again. Each is trained on as an object of its own.',
    'Leave all but one out.',
  ),
  'I01': Code(
    'image file missing',
    'A file or folder does not exist or cannot be read. Often the folder of '
    'the images is wrong, or a name differs in upper and lower case letters '
    '(.JPG, .jpg).',
    'Correct the folder or the names. `--fix` writes the name of the only file '
    'with the same base name, and leaves out images without such a file.',
  ),
  'I02': Code(
    'image file damaged',
    'The file ends early or cannot be decoded.',
    'Copy or download it again, or leave the image out with `--fix`.',
  ),
  'I03': Code(
    'no image',
    'The file is empty, a web page, a pointer of git-lfs, or an image in a '
    'format that Pillow does not know.',
    'Download it again (`git lfs pull` for a pointer of git-lfs), or leave '
    'the image out with `--fix`.',
  ),
  'I04': Code(
    'EXIF orientation that the size does not confirm',
    'An image has an EXIF orientation that keeps its size: it is mirrored, '
    'turned upside down, or square. The size in the annotations does not tell '
    'whether the labels were drawn on the turned picture, which viewers show, '
    'or on the pixels as stored. The orientation is applied.',
    'Look at the contact sheet of check_data. If the labels of these images '
    'are turned or mirrored there, give `--config.data.apply_exif=False`.',
  ),
  'I05': Code(
    'size of an image wrong',
    'The height and width in the annotations are not those of the image, '
    'neither as it is stored nor as its EXIF orientation turns it.',
    'Correct the size in the annotations. If the image was resized after it '
    'had been annotated, use the original image. `--fix` reads a missing size '
    'from the file.',
  ),
  'I07': Code(
    'transparency dropped',
    'Parts of an image are transparent; the stored colors of these parts are '
    'used as if they were not.',
    'If these colors are wrong, save the image without transparency.',
  ),
  'I09': Code(
    'more than 8 bits a channel',
    'An image, in gray or in color, has more than 8 bits a channel, usually '
    '16. Its values for black and white are not known.',
    'Give the values that become black and white, for example '
    '`--config.data.pixel_range=0,4095`, or convert the images to 8 bits a '
    'channel.',
  ),
  'I10': Code(
    'floating-point pixels',
    'The pixels are floating-point numbers, so the values for black and '
    'white are not known.',
    'Convert the image to 8 bits a channel, or leave it out with `--fix`.',
  ),
  'I11': Code(
    'channels that are not RGB',
    'The image has a color space such as LAB, or more channels than colors '
    'and transparency. If the colors can be told from the other channels, '
    'these are left out with a warning; otherwise it is an error.',
    'If it is an error, convert the image to RGB or gray, or leave it out with '
    '`--fix`.',
  ),
  'I12': Code(
    'image too large',
    'The image has more than 178,956,970 pixels, or needs more memory '
    'than this machine has; or it has more than 134,217,728 pixels, but a file '
    'so small that it is nearly of one colour or damaged.',
    'Cut it into tiles or shrink it, and change its annotations in the same '
    'way; or leave it out with `--fix`.',
  ),
  'I13': Code(
    'image tiny or very long',
    'A side is shorter than 32 pixels, or one side is more than 20 times as '
    'long as the other, so that most of the padded image is padding.',
    'Nothing needs to be done; you may cut long images into tiles.',
  ),
  'I14': Code(
    'only the first picture of the file is used',
    'The file holds several pictures: an animation or a TIFF with pages.',
    'If you need the other pictures, save each as a file of its own.',
  ),
  'I15': Code(
    'file name leads out of the folder',
    'A `file_name` is an absolute path, or `..` in it leads out of the '
    'folder of the images.',
    'Make the names relative to the folder. `--fix` writes the name of the '
    'only file with the same base name, and leaves out images without such a '
    'file.',
  ),
  'C01': Code(
    'classes of the checkpoint differ',
    'The evaluation set has other classes than the checkpoint.',
    'Evaluate on a set with the classes of the training. To train on '
    'other classes, start with `--init_from=CHECKPOINT`. To name the classes '
    'of converted weights, convert them with `--categories=FILE.json`.',
  ),
  'C02': Code(
    'checkpoint does not fit the model',
    'The names or shapes of the weights are not those of the model that the '
    'recipe describes, for example because of another ResNet or another '
    'head; or the command line changes a key that the weights depend on.',
    'Leave `--config` out, which uses the recipe of the checkpoint, or '
    'correct the keys that the message names.',
  ),
  'C04': Code(
    'loss not finite',
    'A loss is NaN or infinite, usually because the learning rate is too '
    'high for the batch size. The checkpoints were saved before that and are '
    'good.',
    'Lower `--config.optimizer.learning_rate`, or raise '
    '`--config.optimizer.warmup_steps`; look at the images that the '
    'message names.',
  ),
  'C05': Code(
    'recipe key unknown or value wrong',
    'The name of a key is misspelt, or its value has the wrong type or is '
    'out of range. Or a YAML file is damaged, or has keys of another program '
    'that have no counterpart here.',
    'Correct it as the message says. `python -m '
    'maskrcnn_jax.config.documentation` lists all keys and their values, and '
    '`python -m maskrcnn_jax.config.other_programs` the keys of other programs '
    'that are translated.',
  ),
  'C06': Code(
    'batch size and devices do not fit',
    'The batch size is not a multiple of the number of devices or processes.',
    'Give the batch size that the message proposes.',
  ),
  'C07': Code(
    'workdir of another run',
    'The workdir holds a run with another recipe, other classes, another '
    'data set or more steps.',
    'Give another `--workdir`, start a new run with '
    '`--init_from=CHECKPOINT`, or continue in spite of the changes with '
    '`--allow_changes`.',
  ),
  'C08': Code(
    'no usable checkpoint',
    'A directory holds no checkpoint, or the checkpoint is incomplete, '
    'damaged or was written by another program.',
    'Give a workdir, or one of the numbered directories in its '
    'checkpoints/. If the newest checkpoint is damaged, a training continues '
    'from the one before it, without any option.',
  ),
  'C09': Code(
    'checkpoint given as an address',
    'A checkpoint was given as an address such as http://...; this program '
    'downloads only weights that have a name.',
    'Give the name, if `--list_weights` lists the weights. If it does not, '
    'download the file, and convert it to a checkpoint with '
    '`python -m maskrcnn_jax.convert_weights`.',
  ),
  'C10': Code(
    'cannot write',
    'The disk is full, the directory is read-only or is a file, or it '
    'already holds a run and `--noresume` was given.',
    'Make room, or give another directory. Checkpoints that were saved '
    'before are complete; the same command continues from them.',
  ),
  'C11': Code(
    'results do not fit the ground truth',
    'Detection results name an unknown image or category, or hold numbers '
    'that are not finite.',
    'Give the detection results of this data set.',
  ),
  'C12': Code(
    'no GPU found',
    'JAX is installed for GPUs or was told to use one, but finds none.',
    'Run `nvidia-smi` and `python -m maskrcnn_jax.doctor` to find the '
    'reason; `JAX_PLATFORMS=cpu` runs on the CPU.',
  ),
  'C13': Code(
    'conventions of the weights differ',
    'The initial weights were trained with other conventions than those of '
    'the recipe: mean and order of the colors, or the convolution of a block '
    'that has the stride.',
    'Set the keys that the message names. If you want to train with the '
    'conventions of the recipe, nothing needs to be done.',
  ),
  'C14': Code(
    'weights not finite',
    'Arrays of the weights hold NaN, infinite numbers or a variance below 0, '
    'usually because the training that wrote them had diverged. A model with '
    'such weights finds nothing.',
    'Take an earlier checkpoint of that training, or download the file again.',
  ),
  'C15': Code(
    'weights cannot be downloaded',
    'Weights were given by name, and their server, or a proxy on the way to '
    'it, cannot be reached or refuses. The message names the address, the '
    'proxy, if there is one, and the reason. A connection that was cut is not '
    'an error: the download goes on where it was cut.',
    'Check the network and the variables `http_proxy`, `https_proxy` and '
    '`no_proxy`. On a machine without a network, download the address of the '
    'message elsewhere, convert the file with '
    '`python -m maskrcnn_jax.convert_weights`, and give the checkpoint. The '
    'variable `MASKRCNN_JAX_MIRROR` names a mirror.',
  ),
  'C16': Code(
    'downloaded file is not the published one',
    'The checksum of a downloaded weight file is not that of its publisher: '
    'the file was changed or damaged on the way, or a mirror or a proxy sends '
    'another file.',
    'Give the same command again; the file was removed and is downloaded once '
    'more. If that does not help, leave the mirror out.',
  ),
  'C17': Code(
    'workdir in use',
    'Another training runs in this workdir; the message names its host and '
    'process. Two trainings would destroy the checkpoints of each other. '
    'Evaluation and prediction may run beside a training. The file '
    '`training.lock` in the workdir names the training. One that has crashed '
    'is no obstacle: on the same machine, a new start goes on at once, and on '
    'another machine after a minute without a heartbeat.',
    'Wait for the end of the other training, stop it, or give another '
    '`--workdir`.',
  ),
}


def command_for(code: str) -> str:
  """Returns the command that prints the explanation of a code."""
  return f'python -m maskrcnn_jax.explain {code}'


def print_error(message: str) -> None:
  """Prints an error to stderr; all programs of this package call this.

  If the message has a code, a second line names the command that explains it.

  Args:
    message: One line, with a code such as 'A07: ' in it or without.
  """
  print(f'error: {printable(message)}', file=sys.stderr)
  code = next(
    (code for code in re.findall(r'\b([AIC]\d\d): ', message) if code in CODES),
    None,
  )
  if code:
    print(f'For more about {code}: {command_for(code)}', file=sys.stderr)
  sys.stderr.flush()

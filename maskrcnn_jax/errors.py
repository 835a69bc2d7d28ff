"""Errors that mean wrong input, and the table of the codes in messages.

docs/error_codes.md is made from the table:

  python -m maskrcnn_jax.errors > docs/error_codes.md
"""

from typing import NamedTuple


class InputError(ValueError):
  """Wrong input: one line that names the fault, its place and the remedy.

  `main` prints the message without a traceback and exits with status 2.  Any
  other exception is a failure while running and exits with status 1.
  """


class SaveError(RuntimeError):
  """Saving failed; earlier checkpoints are unharmed."""


class Code(NamedTuple):
  """The meaning of a code in a message."""

  meaning: str  # a few words, as the report of check_data has it
  cause: str  # when the code is given, and the usual reason
  remedy: str  # the steps that mend it


# A: annotations, I: images, C: recipes, checkpoints, results and the machine.
# Scripts may look for a code, so a code never changes its meaning, and a new
# meaning gets a new number. `--fix` is an option of check_data.
CODES = {
  'A01': Code(
    'box without area',
    'A box has a width or height of 0 or less. Up to 1 % of such objects '
    'are left out with a warning; more are an error.',
    'Draw the box again, or leave the object out with `--fix`.',
  ),
  'A02': Code(
    'box outside of its image',
    'A box that reaches over the edge is clipped with a warning. A box '
    'that lies outside altogether is left out; more than 1 % of such '
    'objects are an error.',
    'Check that the annotations belong to these images; `--fix` clips or '
    'leaves out.',
  ),
  'A03': Code(
    'boxes given by their corners',
    'More than 20 % of the boxes reach over the edge of their images, and '
    'all fit when they are read as (x1, y1, x2, y2).',
    'Write boxes as (x, y, width, height); `--fix` does.',
  ),
  'A04': Code(
    'number that is none, or not finite',
    'A coordinate, an area or a score is text, NaN or infinite.',
    'Correct the number, or leave the object out with `--fix`.',
  ),
  'A05': Code(
    'polygon with fewer than 6 numbers or an odd count',
    'A polygon needs at least three (x, y) pairs. A shorter one is left '
    'out with a warning, and so is an object without another polygon; '
    'more than 1 % of such objects are an error.',
    'Draw the outline again, or leave the polygon out with `--fix`.',
  ),
  'A06': Code(
    'object without a mask',
    '`segmentation` is missing or empty. Up to 1 % of such objects are '
    'left out with a warning; more are an error.',
    'Add the masks; or train a model without masks, '
    '`--config.model.output=boxes`; or leave the objects out with `--fix`.',
  ),
  'A07': Code(
    'segmentation of another form',
    '`segmentation` is neither a list of polygons nor an RLE. Often it is '
    'one flat list of numbers.',
    'Put each polygon into a list of its own, `[[x1, y1, x2, y2, ...]]`; '
    '`--fix` does.',
  ),
  'A09': Code(
    'RLE that does not fit its image',
    'The size of a run-length encoded mask is not (height, width) of the '
    'image, or its counts do not add up to the pixels of the image. Often '
    'height and width are exchanged.',
    'Encode the mask again at the size of the image, or leave the object '
    'out with `--fix`.',
  ),
  'A10': Code(
    'mask without a pixel',
    'A mask covers no pixel, usually because the object is smaller than '
    'one. The object is trained on with its box only.',
    'Nothing, unless these objects should have masks.',
  ),
  'A11': Code(
    'box and mask disagree',
    'A box and the box around its mask overlap by less than half (IoU '
    '0.5). An error if that is so for more than 20 % of the objects.',
    'Look at the contact sheet of check_data, and correct the boxes or '
    'the masks.',
  ),
  'A12': Code(
    'iscrowd missing or not 0 or 1',
    'A missing `iscrowd` is taken to be 0 with a warning; any other value '
    'is an error.',
    'Set `iscrowd` to 0 for an object and to 1 for a crowd region; `--fix` '
    'sets it where it is missing.',
  ),
  'A13': Code(
    'category without id or name',
    'An entry of `categories` lacks an `id` (an integer or a string) or a '
    '`name` (a string).',
    'Complete the entry.',
  ),
  'A14': Code(
    'annotation of an unknown image or category',
    'The `image_id` or `category_id` of an annotation or a result is in '
    'none of the lists, often because one is a string and the other a '
    'number.',
    'Correct the id, or leave the annotation out with `--fix`.',
  ),
  'A15': Code(
    'category twice',
    'Two categories have the same id or the same name.',
    'Rename one, or merge them in your annotation program.',
  ),
  'A16': Code(
    'background as a category',
    'A category is called background and has objects. Whatever no object '
    'covers is background already.',
    'Leave the category and its objects out; `--fix` does.',
  ),
  'A17': Code(
    'image id twice',
    'Two images have the same id, so that nobody can tell to which of '
    'them an annotation belongs.',
    'Give the images different ids and correct their annotations.',
  ),
  'A18': Code(
    'annotation ids that are missing or not unique',
    'Ids of annotations are missing, used twice, or 0, which the COCO API '
    'takes for "no match". They are numbered anew in memory.',
    'Nothing for a training here; `--fix` writes new ids for other programs.',
  ),
  'A19': Code(
    'image without a usable id',
    'An entry of `images` is no object, or its id is neither a number nor '
    'a string.',
    'Correct the id, or leave the image out with `--fix`.',
  ),
  'A20': Code(
    'image twice',
    'Two entries name the same file, two files have the same content, or '
    'there are two files of annotations for one image. An error if one of '
    'them is for training and the other for evaluation.',
    'Leave one of the two out.',
  ),
  'A21': Code(
    'class tables differ',
    'The categories of the evaluation set are not those of the training '
    'set, or the splits of one data set differ. Letter case counts.',
    'Make the ids and names of `categories` equal; the message lists the '
    'differences.',
  ),
  'A22': Code(
    'class without objects',
    'A category has no annotation. Its AP is "n/a" and left out of the mean.',
    'Nothing, or remove the category.',
  ),
  'A23': Code(
    'nothing to train on',
    'There are no categories, no images or no objects, or all of them '
    'were left out; the message says how many images are left after each '
    'step.',
    'Check that you gave the intended file; repair what was left out.',
  ),
  'A24': Code(
    'more objects in an image than slots',
    'An image has more objects than `config.data.max_objects`. The '
    'largest are trained on. An error if more than 5 % of all objects '
    'would be lost.',
    'Set `--config.data.max_objects` to the number in the message, which '
    'needs more memory, or cut the images into tiles.',
  ),
  'A25': Code(
    'not a COCO instances file',
    'The file of annotations is missing, is not JSON, or is of another '
    'kind: VIA, LabelMe, panoptic, captions, detection results.',
    'Give the instances file. `python -m maskrcnn_jax.convert_to_coco` '
    'converts VIA, LabelMe and mask pictures.',
  ),
  'A26': Code(
    'area missing or wrong',
    'The `area` of an annotation is missing, or less than half or more '
    'than twice that of the mask. AP of small, medium and large objects '
    'depends on it. A missing one is computed from the mask.',
    'Correct the area; `--fix` does.',
  ),
  'A27': Code(
    'outline too long',
    'The outline of an object has more than 32,768 vertices, or the '
    'object has more than 32,767 polygons.',
    'Simplify the outline, or leave the object out with `--fix`.',
  ),
  'I01': Code(
    'image file missing',
    'A file or folder is not there: the folder of the images is wrong, a '
    'name differs in letter case (.JPG, .jpg), or it cannot be read.',
    'Correct the folder or the names; `--fix` leaves such images out.',
  ),
  'I02': Code(
    'image file damaged',
    'The file ends early or cannot be decoded.',
    'Copy or download it again; `--fix` leaves it out.',
  ),
  'I03': Code(
    'no image',
    'The file is empty, a web page, a pointer of git-lfs, or of a format '
    'that Pillow does not know.',
    'Download it again (`git lfs pull`); `--fix` leaves it out.',
  ),
  'I05': Code(
    'size of an image wrong',
    'Height and width in the annotations are not those of the image, '
    'neither as stored nor after its EXIF orientation.',
    'Correct the size, or the image if it was resized after it had been '
    'annotated.',
  ),
  'I07': Code(
    'transparency dropped',
    'An image is transparent in places; the colors behind are used.',
    'If these colors are not what you want, save the image without '
    'transparency.',
  ),
  'I09': Code(
    'more than 8 bits a channel',
    'A gray image has 16 or 32 bits, or a color image 16.',
    'Gray: give the values for black and white, '
    '`--config.data.pixel_range=(0,4095)`. Color: convert to 8 bits.',
  ),
  'I10': Code(
    'floating-point pixels',
    'The range of floating-point pixels cannot be known.',
    'Convert the image to 8 bits a channel; `--fix` leaves it out.',
  ),
  'I11': Code(
    'channels that are not RGB',
    'The image has a color space such as LAB, or more than four channels.',
    'Convert it to RGB or gray; `--fix` leaves it out.',
  ),
  'I12': Code(
    'image too large',
    'The image has more than 178,956,970 pixels, or needs more memory '
    'than there is.',
    'Cut it into tiles or shrink it, and its annotations with it; `--fix` '
    'leaves it out.',
  ),
  'I13': Code(
    'image tiny or very long',
    'A side is shorter than 32 pixels, or more than 20 times as long as '
    'the other, so that most of the canvas is padding.',
    'Nothing, or cut long images into tiles.',
  ),
  'I14': Code(
    'only the first picture of the file is used',
    'The file holds several pictures: an animation or a TIFF with pages.',
    'Save the others as files of their own if you need them.',
  ),
  'I15': Code(
    'file name leads out of the folder',
    'A `file_name` is absolute, or `..` leads out of the folder of the images.',
    'Make the names relative to the folder; `--fix` leaves the images out.',
  ),
  'C01': Code(
    'classes of the checkpoint differ',
    'The set to evaluate on has other classes than the checkpoint.',
    'Evaluate on a set with the classes of the training; to train on '
    'other classes, start with `--init_from=CHECKPOINT`.',
  ),
  'C02': Code(
    'checkpoint does not fit the model',
    'Names or shapes of the weights are not those of the model of the '
    'recipe, for example another ResNet or another head; or a key that '
    'the weights depend on was given with another value.',
    "Use the checkpoint's own recipe (no `--config`), or the keys that "
    'the message names.',
  ),
  'C04': Code(
    'loss not finite',
    'A loss is NaN or infinite, mostly because of a learning rate that is '
    'too high for the batch size. The checkpoints are from before.',
    'Lower `--config.optimizer.learning_rate`, or raise '
    '`--config.optimizer.warmup_steps`; look at the images that the '
    'message names.',
  ),
  'C05': Code(
    'recipe key unknown or value wrong',
    'A key is misspelt, or its value has the wrong type or range.',
    'Correct it as the message says; `maskrcnn_jax/config/keys.py` lists '
    'all keys.',
  ),
  'C06': Code(
    'batch size and devices do not fit',
    'The batch size is no multiple of the number of devices or processes.',
    'Give the batch size that the message proposes.',
  ),
  'C07': Code(
    'workdir of another run',
    'The workdir holds a run with another recipe, other classes, another '
    'data set or more steps.',
    'Give another `--workdir`, start with `--init_from=CHECKPOINT`, or '
    'continue all the same with `--allow_changes`.',
  ),
  'C08': Code(
    'no usable checkpoint',
    'A directory holds no checkpoint, or one that is incomplete, damaged '
    'or of another program.',
    'Give a workdir, or one of the numbered directories in its '
    'checkpoints/. A training goes on from the checkpoint before a '
    'damaged one by itself.',
  ),
  'C09': Code(
    'checkpoint given as an address',
    'A checkpoint was given as http://... or the like; nothing is downloaded.',
    'Download the file; `python -m maskrcnn_jax.convert_weights` makes a '
    'checkpoint of it.',
  ),
  'C10': Code(
    'cannot write',
    'The disk is full, the directory is read-only or is a file, or it '
    'already holds a run and `--noresume` was given.',
    'Make room, or give another directory. Checkpoints that were saved '
    'before are whole; the same command continues.',
  ),
  'C11': Code(
    'results do not fit the ground truth',
    'Detection results have an unknown image or category, or numbers that '
    'are not finite.',
    'Give the results of this data set.',
  ),
  'C12': Code(
    'no GPU found',
    'JAX is installed for GPUs or was told to use one, but finds none.',
    'Look at nvidia-smi and `python -m maskrcnn_jax.doctor`; '
    '`JAX_PLATFORMS=cpu` runs on the CPU.',
  ),
  'C13': Code(
    'conventions of the weights differ',
    'Initial weights were trained with other conventions (mean and order '
    'of the colors, stride in a block) than those of the recipe.',
    'Set the keys that the message names, unless you mean to train the '
    'weights anew.',
  ),
}


def as_markdown() -> str:
  """Returns the documentation of all codes, the text of docs/error_codes.md."""
  kinds = {
    'A': 'Annotations',
    'I': 'Images',
    'C': 'Recipes, checkpoints, results and the machine',
  }
  lines = [
    '# Error codes',
    '',
    'Made from the table in `maskrcnn_jax/errors.py` by `python -m '
    'maskrcnn_jax.errors`.',
    '',
    'A code keeps its meaning from release to release; numbers that are '
    'missing are not in use. `--fix` is `python -m maskrcnn_jax.check_data '
    '--fix=OUT.json`, which writes a repaired copy and lists every change.',
  ]
  for letter, kind in kinds.items():
    lines += [
      '',
      f'## {kind}',
      '',
      '| code | meaning | cause | what to do |',
      '|---|---|---|---|',
    ]
    lines += [
      f'| {code} | {row.meaning} | {row.cause} | {row.remedy} |'
      for code, row in CODES.items()
      if code[0] == letter
    ]
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(as_markdown(), end='')

"""Lists as people have them: CSV, TSV and text with a header, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.pictures.lists import read_list

NAMES, CLASSES = ("x.jpg", "deep/y.jpg"), ("cat", "dog")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


TABLES = {
    "commas": "image,class\nx.jpg,cat\ndeep/y.jpg,dog\n",
    "semicolons": "image;class\nx.jpg;cat\ndeep/y.jpg;dog\n",
    "tabs": "image\tclass\nx.jpg\tcat\ndeep/y.jpg\tdog\n",
    "byte order mark": "\ufeffimage,class\nx.jpg,cat\ndeep/y.jpg,dog\n",
    "Windows": "image,class\r\nx.jpg,cat\r\n\r\ndeep/y.jpg,dog\r\n",
    "old Macintosh": "image,class\rx.jpg,cat\rdeep/y.jpg,dog\r",
    "no end of line": "image,class\nx.jpg,cat\ndeep/y.jpg,dog",
    "quotes": '"image","class"\n"x.jpg","cat"\n"deep/y.jpg","dog"\n',
    "spaces": "image, class\nx.jpg, cat\ndeep/y.jpg, dog\n",
    "the other order": "class,image\ncat,x.jpg\ndog,deep/y.jpg\n",
    "path and label": "path,label\nx.jpg,cat\ndeep/y.jpg,dog\n",
    "capitals": "File Name,Target\nx.jpg,cat\ndeep/y.jpg,dog\n",
    "file_name": "file_name;category\nx.jpg;cat\ndeep/y.jpg;dog\n",
    "image-path": "Image-Path\tclass_name\nx.jpg\tcat\ndeep/y.jpg\tdog\n",
    "pandas": ",image,class\n0,x.jpg,cat\n1,deep/y.jpg,dog\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".CSV"])
@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_with_a_header_is_read(tmp_path, text, suffix):
    images = read_images(write(tmp_path / f"list{suffix}", text))
    assert images == ImageList(tmp_path, NAMES, CLASSES) and images.notes == ()


@pytest.mark.parametrize("header", ["x1,y1,x2,y2", "xmin,ymin,xmax,ymax", "X_Min,Y_Min,X_Max,Y_Max"])
def test_boxes_are_read_from_a_table(tmp_path, header):
    path = write(tmp_path / "list.csv", f"filename,{header},class\nx.jpg,1,2,30,40,cat\n")
    assert read_images(path) == ImageList(tmp_path, ("x.jpg",), ("cat",), ((1, 2, 30, 40),))


def test_corners_may_stand_in_any_order(tmp_path):
    path = write(tmp_path / "list.csv", "y2,x2,y1,x1,file\n40,30,2,1,x.jpg\n")
    assert read_images(path).boxes == ((1, 2, 30, 40),)


@pytest.mark.parametrize("header", ["image", "path", "Filename", '"file"'])
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".tsv"])
def test_a_column_of_names_has_no_classes(tmp_path, header, suffix):
    path = write(tmp_path / f"list{suffix}", f'{header}\nx.jpg\n"with, comma.jpg"\nand, another.jpg\n')
    assert read_images(path) == ImageList(tmp_path, ("x.jpg", "with, comma.jpg", "and, another.jpg"))


def test_columns_that_are_not_used_are_named(tmp_path):
    path = write(tmp_path / "list.csv", "image,split,class,width,url\nx.jpg,train,cat,9,u\n")
    images = read_images(path)
    assert images.classes == ("cat",)
    assert images.notes == (f"{path}: 3 columns were not used: split, width and 1 more.",)
    dataset = read_dataset(write(path, "image,class,fold\nx.jpg,cat,1\ny.jpg,dog,1\n"))
    assert dataset.notes[1:] == (f"{path}: 1 column was not used: fold.",)


def test_a_split_column_is_used_where_parts_are_read_and_only_there(tmp_path):
    path = write(tmp_path / "list.csv", "image,split,class,width\nx.jpg,train,cat,9\ny.jpg,test,dog,9\n")
    assert read_images(path).names == ("x.jpg", "y.jpg")
    assert read_images(path).notes == (f"{path}: 2 columns were not used: split, width.",)
    assert read_dataset(path).notes == (f"{path}: 1 column was not used: width.",)
    assert read_list(path).split is None
    assert read_list(path, with_split=True).split == ((2, "train"), (3, "test"))
    write(path, "image,split,Split\nx.jpg,train,train\n")
    assert read_images(path).names == ("x.jpg",)
    with pytest.raises(InputError, match="several columns for the split, 'split' and 'Split'; keep one of them"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("x.jpg,cat\nx.jpg,cat\n", "1 picture was listed more than once: x.jpg."),
        ("x.jpg,cat\ny.jpg,a\ny.jpg,a\nx.jpg,dog\n", "2 pictures were listed more than once: x.jpg as cat and as dog."),
    ],
)
def test_a_picture_that_is_listed_twice_is_told(tmp_path, rows, told):
    images = read_images(write(tmp_path / "list.csv", f"image,class\n{rows}"))
    assert len(images) == rows.count("\n") and images.notes == (f"{tmp_path}/list.csv: {told}",)


def test_two_boxes_of_one_picture_are_two_pictures(tmp_path):
    text = "image,class,x1,y1,x2,y2\nx.jpg,cat,0,0,9,9\nx.jpg,dog,9,9,20,20\n"
    assert read_images(write(tmp_path / "list.csv", text)).notes == ()


REFUSED = {
    "no header": ("x.jpg,cat\n", "starts with 'x.jpg,cat'"),
    "only names": ("x.jpg\ny.jpg\n", "starts with 'x.jpg'"),
    "spaces between": ("x.jpg 3\n", "starts with 'x.jpg 3'"),
    "no column of names": ("id,class\n1,cat\n", "the header image<TAB>class"),
    "some corners": ("image,xmin,ymin\nx.jpg,1,2\n", "the header image<TAB>class"),
    "two for the class": (
        "image,label,class_id\nx.jpg,cat,1\n",
        "columns for the class, 'label' and 'class_id'",
    ),
    "two for the picture": ("path,file\nx.jpg,y.jpg\n", "several columns for the image, 'path' and 'file'"),
    "some classes": ("image,class\nx.jpg,cat\ny.jpg,\n", "line 3 has no class"),
    "too many fields": ("image,class\nx.jpg,cat,1\n", "line 2 has 3 fields; expected 2"),
    "header only": ("image\n", "lists no pictures"),
    "a box of words": ("image,xmin,ymin,xmax,ymax\nx.jpg,1,2,3,four\n", "four whole numbers"),
}


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".tsv"])
@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_others_are_refused_in_one_sentence(tmp_path, text, says, suffix):
    path = write(tmp_path / f"list{suffix}", text)
    with pytest.raises(InputError) as caught:
        read_images(path)
    message = str(caught.value)
    assert says in message and str(path) in message and "\n" not in message and message.endswith(".")
    if "starts with" in message:
        assert "for example the line image,class above the line cats/1.jpg,cat" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_utf_16_is_refused(tmp_path, suffix, encoding):
    path = write(tmp_path / f"list{suffix}", "image\tclass\nä.jpg\tb\n", encoding)
    with pytest.raises(InputError, match="expected a UTF-8 text file"):
        read_images(path)


@pytest.mark.parametrize("name", ["list.json", "set.zip", "index.npy", "model.cgd", "best.pt", "annos.mat", "a.md"])
def test_files_of_other_kinds_say_what_is_expected(tmp_path, name):
    path = write(tmp_path / name, "PK\3\4 or anything")
    for read in (read_images, read_dataset):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} is no picture in one of the formats ")
        assert str(caught.value).endswith(
            "and no list (.tsv, .csv, .txt); pass a picture, a folder, a list or a glob pattern."
        )


def test_what_has_no_classes_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "list.csv", "image\nx.jpg\n")
    with pytest.raises(InputError, match=r"^list\.csv has no classes; expected one folder per class"):
        read_dataset("list.csv")


@pytest.mark.parametrize("name", ["new\nline.jpg", "a\rb.jpg", "both\r\n.jpg", "ta\tb.jpg", 'quo"te.jpg', " a,b;c "])
def test_a_name_with_signs_of_the_list_itself_is_written_and_read_again(tmp_path, name):
    (tmp_path / name).touch()
    images = ImageList(tmp_path, (name, "plain.jpg"), (f"of {name}", "b"))
    again = read_images(images.write(tmp_path / "list.tsv"))
    assert again.paths == images.paths and again.classes == images.classes

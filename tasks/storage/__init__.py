"""Everything that touches storage: a local folder or any fsspec URI, read and written whole.

Credentials and endpoint come from the environment alone (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...), never from a URI or a parameter. Where one run needs several identities,
say a read-only one for its input bucket, ``STYLECLIP_STORAGE_OPTIONS`` names a JSON file that maps
URI prefixes to fsspec options, for S3 usually a profile of the AWS credentials file:

    {"s3://photographs/": {"profile": "reader"}, "s3://results/": {"profile": "writer"}}

The longest prefix that matches decides; a prefix ends where a folder ends, so that
``s3://photographs`` does not speak for ``s3://photographs-raw``. A place has one name, however it was
spelled: ``styleclip.tasks.storage.places``. An object is complete or absent: locally it is written aside
and moved, on an object store it is committed by one request. Object keys are untrusted: ``output_key`` maps
any of them to a path that cannot leave its prefix. What fails, why, and for how long a store that does not
answer is waited for, is in ``styleclip.tasks.storage.outages``.
"""

from __future__ import annotations

from styleclip.tasks.storage.deleting import delete_objects as delete_objects
from styleclip.tasks.storage.filesystems import filesystem as filesystem
from styleclip.tasks.storage.filesystems import join as join
from styleclip.tasks.storage.items import item_under as item_under
from styleclip.tasks.storage.items import read_item as read_item
from styleclip.tasks.storage.keys import is_safe as is_safe
from styleclip.tasks.storage.keys import mangled as mangled
from styleclip.tasks.storage.keys import output_key as output_key
from styleclip.tasks.storage.keys import readable_key as readable_key
from styleclip.tasks.storage.listing import ObjectInfo as ObjectInfo
from styleclip.tasks.storage.listing import delete_stale_temporaries as delete_stale_temporaries
from styleclip.tasks.storage.listing import first_page as first_page
from styleclip.tasks.storage.listing import list_folders as list_folders
from styleclip.tasks.storage.listing import list_objects as list_objects
from styleclip.tasks.storage.listing import sorted_objects as sorted_objects
from styleclip.tasks.storage.listing import stat as stat
from styleclip.tasks.storage.objects import copy_from_local as copy_from_local
from styleclip.tasks.storage.objects import copy_to_local as copy_to_local
from styleclip.tasks.storage.objects import create_bytes as create_bytes
from styleclip.tasks.storage.objects import exists as exists
from styleclip.tasks.storage.objects import open_binary as open_binary
from styleclip.tasks.storage.objects import read_bytes as read_bytes
from styleclip.tasks.storage.objects import read_version as read_version
from styleclip.tasks.storage.objects import version as version
from styleclip.tasks.storage.objects import write_bytes_atomic as write_bytes_atomic
from styleclip.tasks.storage.objects import written as written
from styleclip.tasks.storage.outages import AccessDeniedError as AccessDeniedError
from styleclip.tasks.storage.outages import ChangedObjectError as ChangedObjectError
from styleclip.tasks.storage.outages import MissingObjectError as MissingObjectError
from styleclip.tasks.storage.outages import StorageError as StorageError
from styleclip.tasks.storage.outages import StoreError as StoreError
from styleclip.tasks.storage.outages import StoreFullError as StoreFullError
from styleclip.tasks.storage.places import NO_PLACE as NO_PLACE
from styleclip.tasks.storage.places import PlaceError as PlaceError
from styleclip.tasks.storage.places import canonical as canonical
from styleclip.tasks.storage.places import here as here
from styleclip.tasks.storage.places import holds_credentials as holds_credentials
from styleclip.tasks.storage.places import is_local as is_local
from styleclip.tasks.storage.places import lies_in as lies_in
from styleclip.tasks.storage.places import local_path as local_path
from styleclip.tasks.storage.places import scheme_of as scheme_of
from styleclip.tasks.storage.presence import contents_of as contents_of
from styleclip.tasks.storage.presence import versions_of as versions_of

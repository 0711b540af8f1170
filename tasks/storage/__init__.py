"""Everything that touches storage: a local folder or any fsspec URI, read and written whole.

Credentials and endpoint come from the environment alone (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...), never from a URI or a parameter. Where one run needs several identities,
say a read-only one for its input bucket, ``STYLECLIP_STORAGE_OPTIONS`` names a JSON file that maps
URI prefixes to fsspec options, for S3 usually a profile of the AWS credentials file:

    {"s3://photographs/": {"profile": "reader"}, "s3://results/": {"profile": "writer"}}

The longest prefix that matches decides; a prefix ends where a folder ends, so that
``s3://photographs`` does not speak for ``s3://photographs-raw``. A place has one name, however it was
spelled: ``tasks.storage.places``. An object is complete or absent: locally it is written aside and moved,
on an object store it is committed by one request. Object keys are untrusted: ``output_key`` maps any of
them to a path that cannot leave its prefix. What fails, why, and for how long a store that does not answer
is waited for, is in ``tasks.storage.outages``.
"""

from __future__ import annotations

from tasks.storage.deleting import delete_objects as delete_objects
from tasks.storage.filesystems import filesystem as filesystem
from tasks.storage.filesystems import join as join
from tasks.storage.items import item_under as item_under
from tasks.storage.items import read_item as read_item
from tasks.storage.keys import is_safe as is_safe
from tasks.storage.keys import mangled as mangled
from tasks.storage.keys import output_key as output_key
from tasks.storage.keys import readable_key as readable_key
from tasks.storage.listing import ObjectInfo as ObjectInfo
from tasks.storage.listing import delete_stale_temporaries as delete_stale_temporaries
from tasks.storage.listing import first_page as first_page
from tasks.storage.listing import list_folders as list_folders
from tasks.storage.listing import list_objects as list_objects
from tasks.storage.listing import sorted_objects as sorted_objects
from tasks.storage.listing import stat as stat
from tasks.storage.objects import copy_from_local as copy_from_local
from tasks.storage.objects import copy_to_local as copy_to_local
from tasks.storage.objects import create_bytes as create_bytes
from tasks.storage.objects import exists as exists
from tasks.storage.objects import open_binary as open_binary
from tasks.storage.objects import read_bytes as read_bytes
from tasks.storage.objects import read_version as read_version
from tasks.storage.objects import version as version
from tasks.storage.objects import write_bytes_atomic as write_bytes_atomic
from tasks.storage.objects import written as written
from tasks.storage.outages import AccessDeniedError as AccessDeniedError
from tasks.storage.outages import ChangedObjectError as ChangedObjectError
from tasks.storage.outages import MissingObjectError as MissingObjectError
from tasks.storage.outages import StorageError as StorageError
from tasks.storage.outages import StoreError as StoreError
from tasks.storage.outages import StoreFullError as StoreFullError
from tasks.storage.places import NO_PLACE as NO_PLACE
from tasks.storage.places import PlaceError as PlaceError
from tasks.storage.places import canonical as canonical
from tasks.storage.places import here as here
from tasks.storage.places import holds_credentials as holds_credentials
from tasks.storage.places import is_local as is_local
from tasks.storage.places import lies_in as lies_in
from tasks.storage.places import local_path as local_path
from tasks.storage.places import scheme_of as scheme_of
from tasks.storage.presence import contents_of as contents_of
from tasks.storage.presence import versions_of as versions_of

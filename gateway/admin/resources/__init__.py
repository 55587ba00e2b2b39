"""Every resource of the Admin API, by name."""

from gateway.admin.resources import access, people, quota
from gateway.admin.resources.resource import Action, Resource, Secret

RESOURCES = {resource.name: resource for resource in (*people.RESOURCES, *access.RESOURCES, *quota.RESOURCES)}

__all__ = ["RESOURCES", "Action", "Resource", "Secret"]

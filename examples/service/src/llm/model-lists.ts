/** The lists of models to which a device is held: its own, and its project's. */
import { UnavailableError } from '@keyguard/core/errors';
import type { Device } from '@keyguard/core/seams';
import type { EnrolledDevice } from '@keyguard/storage-node/postgres';
import type { ProjectGrants } from '../projects/grants.ts';

/** A registry that forgot the list of a device would let it call every model. */
function isEnrolled(device: Device): device is EnrolledDevice {
  return 'allowedModels' in device;
}

/** @throws UnavailableError where one of them is not known */
export async function modelLists(device: Device, grants: Pick<ProjectGrants, 'find'>): Promise<readonly (readonly string[])[]> {
  if (!isEnrolled(device)) throw new UnavailableError('device_registry', 'It is not known to which models a device is held.');
  const ofProject = device.projectId === null ? null : (await grants.find(device.projectId)).allowedModels;
  return [device.allowedModels, ofProject].filter((list) => list !== null);
}

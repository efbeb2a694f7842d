/** The lists of models to which a device is held: its own, and its project's. */
import type { Device } from '@keyguard/core/seams';
import type { ProjectGrants } from '../projects/grants.ts';

/** @throws UnavailableError where that of the project is not known */
export async function modelLists({ projectId, allowedModels }: Pick<Device, 'projectId' | 'allowedModels'>, grants: Pick<ProjectGrants, 'find'>): Promise<readonly (readonly string[])[]> {
  const ofProject = projectId === null ? null : (await grants.find(projectId)).allowedModels;
  return [allowedModels, ofProject].filter((list) => list !== null);
}

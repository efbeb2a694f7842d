import { frameworkConformance } from '@keyguard/conformance/framework';

frameworkConformance('Next.js', { folder: new URL('..', import.meta.url), scripts: ['build', 'start'] });
